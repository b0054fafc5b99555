"""What a model sees in a video, and what it makes of a data set."""
