"""A look inside the trained PAN-Lite: its motion maps, and the timescales that VAP listens to."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowless.export.explain.cues import timescale_names
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.dataset.index import DatasetIndex, VideoRecord
from flowless.train.checkpoints import load_checkpoint


def look_inside(checkpoint: Path, val: DatasetIndex, *, videos_per_label: int = 8) -> dict[str, Any]:
    """Return the parts of the report's evidence that come from inside the model.

    Returns:
        `strips`: label -> one video's first frame of each segment, uint8 `[N, H, W, 3]`, and the PA map from it to the next
        frame, `[N, H, W]`; `vap_weights`: label -> mean weight of each pooled vector, `[N - 1]`; `timescales`: their names.
    """
    loaded = load_checkpoint(checkpoint)
    model: Any = loaded.model
    strips, weights = {}, {}
    for label, videos in _by_label(val, videos_per_label).items():
        clips = torch.from_numpy(np.concatenate([load_clip(val.path_of(video), loaded.spec)[:1] for video in videos]))
        with torch.inference_mode():
            maps = model.motion(clips[:1])[0, :, 0].numpy()
            features = model.features(model.normalise(model.as_frames(clips)))
            weights[label] = model.head.timescale_weights(features).mean(0).numpy()
        strips[label] = (clips[0, :, 0].numpy(), maps)
    return {"strips": strips, "vap_weights": weights, "timescales": timescale_names(loaded.spec.segments)}


def _by_label(val: DatasetIndex, count: int) -> dict[str, list[VideoRecord]]:
    chosen: dict[str, list[VideoRecord]] = defaultdict(list)
    for video in val.videos:
        if len(chosen[val.labels[video.label]]) < count:
            chosen[val.labels[video.label]].append(video)
    return {label: chosen[label] for label in val.labels}
