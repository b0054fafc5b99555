"""Readers of video files and of folders of pictures, and an encoder."""
