"""Live recognition: sources that deliver frames, one batch over all of them, and what is reported."""
