"""The libraries that run an engine, behind one interface."""
