"""Timelines of videos with known borders: mean average precision and speed."""
