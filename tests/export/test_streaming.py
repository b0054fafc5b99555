"""The streaming form of a causal network: exported, built for every target, and over a whole film the numbers of the offline network."""

from __future__ import annotations

import numpy as np

from flowless.engines.loading import load


def test_smoke(streaming_bundles, streaming_models):
    import torch

    for name, path in streaming_bundles.items():
        for target in ("openvino", "onnxruntime"):
            engine = load(path, target)
            clip = np.random.default_rng(0).integers(0, 256, (2, *engine.spec.shape), dtype=np.uint8)
            with torch.inference_mode():
                expected = streaming_models[name](torch.from_numpy(clip)).numpy()
            np.testing.assert_allclose(engine(clip), expected, atol=1e-4)
