"""Timelines of untrimmed videos: sliding windows, segments, and the page that shows them."""

from flowless.engines.timeline.options import TimelineOptions
from flowless.engines.timeline.video_timeline import Segment, Timeline, timeline

__all__ = ["Segment", "Timeline", "TimelineOptions", "timeline"]
