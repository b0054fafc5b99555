"""Timelines of untrimmed videos: sliding windows, segments, and the page that shows them."""
