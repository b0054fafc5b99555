"""The layers that the systems put into a backbone."""
