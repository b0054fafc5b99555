"""Loading a bundle and running it: numpy, PyAV, Pillow and one backend, nothing else."""
