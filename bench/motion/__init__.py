"""Motion cues beside optical flow."""
