"""`flowless explain`: what a model attends to in a video, and how it does on a data set."""
