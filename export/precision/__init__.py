"""From the float32 graph to one in a lower precision, calibrated where that is int8."""
