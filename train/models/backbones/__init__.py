"""The backbones: networks from frames, or clips, to feature vectors, and their pretrained weights."""
