"""The libraries that run an engine, each behind one interface."""
