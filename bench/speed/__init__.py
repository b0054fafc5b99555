"""Speed and memory: decoding, engines, export, beside other programs."""
