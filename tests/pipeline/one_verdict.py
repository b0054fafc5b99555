"""Hold every way of reading a file to the same frames."""

from __future__ import annotations

from pathlib import Path

import barcode
import numpy as np
import pytest
from video_files import all_frames, frames_of, info_of

from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.dataset.scan import scan

SPEC = ClipSpec(segments=4, frames_per_segment=2, height=40, width=40, short_side=48)


def check(path: Path, wanted: list[int] | list[np.ndarray]) -> DatasetIndex:
    """Hold every way of reading a file to its frames, given as numbers in the picture or as the pictures; return its index."""
    full = all_frames(path)
    assert len(full) == len(wanted)
    for frame, right in zip(full, wanted, strict=True):
        if isinstance(right, np.ndarray):
            assert np.array_equal(frame, right)
        else:
            assert barcode.read(frame) == right
    count = len(full)
    proved, quick = info_of(path, decode=True), info_of(path)
    assert proved.frames == quick.frames == count
    assert (proved.height, proved.width, 3) == full[0].shape
    for known in (None, proved, quick):
        for asked in ([count - 1], [count // 2, 0], list(range(0, count, 7)), list(range(count))):
            for ordinal, frame in zip(asked, frames_of(path, asked, known=known), strict=True):
                assert np.array_equal(frame, full[ordinal]), (ordinal, known is None)
    folder = path.parent / f"{path.name}-set"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / path.name).symlink_to(path)
    index = scan(folder, out=folder / "index.jsonl", workers=1)
    (record,) = index.videos
    assert record.frames == count
    clip = load_clip(path, SPEC)
    loaded = pytest.importorskip("flowless.pipeline.loading.loader").ClipLoader(index, SPEC, batch_size=1)
    (batch,) = list(loaded)
    assert np.array_equal(batch.clips[0].numpy(), clip)
    return DatasetIndex.load(folder / "index.jsonl")
