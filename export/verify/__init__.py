"""What an engine must pass before it is kept: layers, parity, accuracy, speed."""
