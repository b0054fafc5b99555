"""The networks that the systems are built on."""
