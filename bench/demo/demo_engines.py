"""Accuracy and speed of each engine of the demo that runs here, and predictions from the video files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import flowless
from flowless.console import log, progress
from flowless.engines import Engine
from flowless.engines.backends.backend import why_not
from flowless.engines.bundle.manifest import read_manifest
from flowless.export.precision.precisions import PRECISIONS
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.timing import time_interleaved

#: Clips in one call when throughput is measured.
BATCH = 8
#: Figures of an engine; None where they were not measured.
_FIGURES = ("top1", "max_abs_diff", "clips_per_s", "latency_ms_p50", "megabytes")


def engine_rows(
    bundle: Path, val: DatasetIndex, *, trials: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Evaluate every engine of a bundle that this machine runs on labelled videos, and time them, interleaved.

    Args:
        bundle: The bundle.
        val: The videos.
        trials: Rows of `try_all`.
        left_out: Targets that cannot be built here, and why.

    Returns:
        One row for each precision of each target, as `summary.json` holds them; figures that were not measured are None.
    """
    manifest = read_manifest(bundle)
    with progress() as bar:
        videos = bar.track(val.videos, description="decode validation videos")
        clips = np.stack([load_clip(val.path_of(video), manifest.spec)[0] for video in videos])
    truth = np.array([video.label for video in val.videos])
    engines: dict[str, Engine] = {}
    rows = []
    for trial in trials:
        key = (trial["target"], trial["precision"])
        row = {"target": key[0], "precision": key[1], "status": trial["status"], **dict.fromkeys(_FIGURES)}
        row |= {name: trial[name] for name in ("top1", "max_abs_diff", "latency_ms_p50")}
        artefact = manifest.artefact(*key)
        if trial["kept"] and artefact is not None:
            row["megabytes"] = round(sum(manifest.files[name].bytes for name in artefact.files) / 1e6, 3)
            if not why_not(artefact.target, artefact):
                engine = engines[str(key)] = flowless.load(bundle, *key)
                scores = np.concatenate([engine(clips[start : start + BATCH]) for start in range(0, len(clips), BATCH)])
                row["top1"] = round(float((scores.argmax(axis=1) == truth).mean()), 4)
        rows.append(row)
    batch = clips[:BATCH]
    times = time_interleaved({key: partial(engine, batch) for key, engine in engines.items()}, runs=8, warmup=2, warmup_each=1)
    for row in rows:
        if timing := times.get(str((row["target"], row["precision"]))):
            row["clips_per_s"] = round(timing.per_second(len(batch)), 1)
    for target, why in left_out.items():
        rows += [{"target": target, "precision": name, "status": f"not built: {why}", **dict.fromkeys(_FIGURES)} for name in PRECISIONS]
    return rows


def grouped(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows for people: precisions of one target with the same status and no figures are joined into one row."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = (row["target"], row["status"]) if is_unmeasured(row) else (row["target"], row["status"], row["precision"])
        if key in groups:
            groups[key]["precision"] += f", {row['precision']}"
        else:
            groups[key] = dict(row)
    return list(groups.values())


def is_unmeasured(row: Mapping[str, Any]) -> bool:
    """Return whether an engine has no figure."""
    return all(row[name] is None for name in _FIGURES)


def predict_videos(bundle: Path, val: DatasetIndex, *, shown: int = 24) -> dict[str, Any]:
    """Predict the validation videos from their files with the best engine; return what the report shows of it."""
    engine = flowless.load(bundle)
    log.print(engine.why, markup=False)
    paths = [val.path_of(video) for video in val.videos]
    start = time.perf_counter()
    with progress() as bar:
        predictions = list(bar.track(engine.predict_many(paths), total=len(paths), description=f"predict with {engine.target}"))
    seconds = time.perf_counter() - start
    rows = [
        {
            "video": video.path,
            "true": val.labels[video.label],
            "predicted": prediction.top[0].label,
            "score": prediction.top[0].score,
            "seconds": prediction.seconds,
        }
        for video, prediction in zip(val.videos, predictions, strict=True)
        if prediction.error is None
    ]
    return {
        "target": f"{engine.target} {engine.precision}",
        "total": len(paths),
        "right": sum(row["true"] == row["predicted"] for row in rows),
        "videos_per_s": len(paths) / seconds,
        "rows": rows[:: max(1, len(rows) // shown)][:shown],
    }
