"""Definition of a clip: frame sampling, resizing and cropping, and evaluation protocols."""
