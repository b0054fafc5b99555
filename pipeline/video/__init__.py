"""Reading video files: one place that opens them, and the frames, exactly."""
