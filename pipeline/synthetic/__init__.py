"""Moving Shapes, a generated data set."""
