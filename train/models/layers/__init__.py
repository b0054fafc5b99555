"""The layers that recognisers put before, into and after a backbone."""
