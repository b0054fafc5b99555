"""The PA op's TensorRT plugin: its C++ source, and building and loading its library."""
