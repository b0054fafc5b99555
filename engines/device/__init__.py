"""Arrays that lie on a device: taken from other libraries without a copy, and handed on."""
