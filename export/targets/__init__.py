"""Building an engine of a graph, target by target."""
