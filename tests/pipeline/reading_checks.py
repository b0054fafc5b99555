"""Checks that all ways of reading a video give the same frames."""

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


def check_all_readers(path: Path, wanted: list[int] | list[np.ndarray]) -> DatasetIndex:
    """Check full decode, selected frames, properties, scan, clip and loader of a file; return its index.

    `wanted` are the expected frames, as images or as the numbers in their bar codes.
    """
    full = all_frames(path)
    assert len(full) == len(wanted)
    for frame, expected in zip(full, wanted, strict=True):
        if isinstance(expected, np.ndarray):
            assert np.array_equal(frame, expected)
        else:
            assert barcode.read(frame) == expected
    count = len(full)
    proved, quick = info_of(path, decode=True), info_of(path)
    assert proved.frames == quick.frames == count
    assert (proved.height, proved.width, 3) == full[0].shape
    for known in (None, proved, quick):
        for ordinals in ([count - 1], [count // 2, 0], list(range(0, count, 7)), list(range(count))):
            for ordinal, frame in zip(ordinals, frames_of(path, ordinals, known=known), strict=True):
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
