"""Generated videos with known answers: Moving Shapes."""
