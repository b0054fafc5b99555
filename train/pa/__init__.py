"""Persistence of Appearance (PA) as an operator: the module, its two forms, and its kernels for a GPU."""
