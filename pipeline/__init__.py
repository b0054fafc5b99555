"""From video files and data sets to clips.

`video` opens files and decodes selected frames exactly; `dataset` lists, scans and indexes data sets; `clip` samples frames and resizes
them; `loading` makes batches with DALI; `synthetic` generates labelled videos. `video`, `dataset` and `clip` need only numpy, PyAV and
Pillow, and are part of a runtime install; `loading` needs DALI and PyTorch too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowless.pipeline.clip.preprocess import load_clip
    from flowless.pipeline.clip.sampling import clip_indices
    from flowless.pipeline.clip.spec import ClipSpec
    from flowless.pipeline.dataset.index import DatasetIndex
    from flowless.pipeline.dataset.scan import scan
    from flowless.pipeline.video.reader import VideoReader

_WHERE = {
    "ClipSpec": "clip.spec",
    "DatasetIndex": "dataset.index",
    "VideoReader": "video.reader",
    "clip_indices": "clip.sampling",
    "load_clip": "clip.preprocess",
    "scan": "dataset.scan",
}
__all__ = ["ClipSpec", "DatasetIndex", "VideoReader", "clip_indices", "load_clip", "scan"]


def __getattr__(name: str) -> Any:
    """Import a public name on first access, so that clips from arrays need no PyAV."""
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
