"""Timing, peers, limits, reports. Nothing imports this package."""
