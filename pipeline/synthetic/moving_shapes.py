"""Moving Shapes: a synthetic data set that cannot be classified without the order of frames.

Twelve actions in six pairs, each the time-reversal of its twin, on textured still backgrounds with still distractors.
With `twins` every scene is written twice: forwards, and played backwards under the twin's label. A model that ignores
the order of frames predicts the same label for both, so its accuracy cannot exceed 50 %. In training, twins prevent the
model from memorising backgrounds, since each has two labels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flowless.console import progress
from flowless.errors import FlowlessError
from flowless.files import whole_folder, write_json
from flowless.interrupts import WorkerPool
from flowless.machine import usable_cores
from flowless.pipeline.dataset.index import DatasetIndex, VideoRecord
from flowless.pipeline.synthetic.scene import CLASSES, PAIRS, TWIN, scene_frames

__all__ = ["CLASSES", "PAIRS", "SPLITS", "TWIN", "ShapesOptions", "Split", "draw", "generate", "scenes"]

Split = Literal["train", "val"]

#: The file with the options that marks a folder of Moving Shapes; only a folder with it is replaced.
MARK = "moving-shapes.json"
FPS = 25
#: Frames from one key frame to the next.
_GOP = "12"
_X264 = {"preset": "veryfast", "crf": "20", "g": _GOP, "keyint_min": _GOP, "sc_threshold": "0"}
SPLITS: tuple[Split, ...] = ("train", "val")
_CHUNK = 16


@dataclass(frozen=True, kw_only=True)
class ShapesOptions:
    """What to generate. The frames depend only on these values, not on the number of workers."""

    size: int = 48
    """Side of the square frame, in pixels; even, at least 16."""
    frames: int = 32
    """Frames of each video, at least 4; 25 per second."""
    train_videos: int = 2400
    """Training videos in all, twins included."""
    val_videos: int = 480
    """Validation videos in all, twins included; their scenes differ from those of training."""
    seed: int = 0
    """Random seed."""
    twins: bool = True
    """Write each scene a second time, played backwards, under the label of its twin."""
    shake: bool = False
    """Shake the camera. At 48 pixels this hides the motion; use it from about 112 pixels on."""

    def __post_init__(self) -> None:
        """Validate all fields; one error lists all problems."""
        problems = []
        if self.size < 16 or self.size % 2:
            problems.append(f"size is {self.size}; it must be even (H.264 stores colour at half the size) and at least 16")
        if self.frames < 4:
            problems.append(f"frames is {self.frames}; it must be at least 4")
        allowed = "0 or more, and even, since each video has its twin" if self.twins else "0 or more"
        problems += [
            f"{name} is {value}; it must be {allowed}"
            for name, value in (("train_videos", self.train_videos), ("val_videos", self.val_videos))
            if value < 0 or (self.twins and value % 2)
        ]
        if not 0 <= self.seed < 2**63:
            problems.append(f"seed is {self.seed}; it must be from 0 to 2**63 - 1")
        if problems:
            raise FlowlessError("Moving Shapes: " + "; ".join(problems) + ".")


def generate(out: str | os.PathLike[str], *, options: ShapesOptions | None = None, workers: int | None = None) -> Path:
    """Generate both splits into the folder `out`, atomically.

    Writes `train/<class>/*.mp4`, `val/<class>/*.mp4`, `train.index.jsonl`, `val.index.jsonl` (identical to the index
    of a scan) and `moving-shapes.json` (the options). With twins, `<class>/00012.mp4` and `<twin>/00012.mp4` are one
    scene forwards and backwards.

    Args:
        out: the folder; an existing one is replaced if it holds Moving Shapes.
        options: what to generate; the defaults are the demo's.
        workers: processes that draw and encode; None: one per processor core.

    Returns:
        The folder.

    Raises:
        FlowlessError: `out` exists and does not hold Moving Shapes, it cannot be written, or the disk is full.
    """
    options, target = options or ShapesOptions(), Path(out)
    workers = usable_cores() if workers is None else workers
    if workers < 1:
        raise FlowlessError(f"Moving Shapes: workers is {workers}; it must be at least 1.")
    if target.exists() and not _replaceable(target):
        raise FlowlessError(f"{target}: exists and does not hold Moving Shapes, so it is not replaced. Name an empty or a new folder.")
    with whole_folder(target) as draft:
        for split in SPLITS:
            for label in CLASSES:
                (draft / split / label).mkdir(parents=True)
        _write_scenes(draft, options, workers)
        for split in SPLITS:
            _index(draft, split, options, workers).save(draft / f"{split}.index.jsonl")
        write_json(draft / MARK, {"options": asdict(options), "labels": list(CLASSES), "twins": TWIN})
    return target


def _replaceable(target: Path) -> bool:
    return target.is_dir() and ((target / MARK).is_file() or not any(target.iterdir()))


def scenes(split: Split, options: ShapesOptions) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield each scene's number and its labels: the action and, with twins, its reversal."""
    videos = options.train_videos if split == "train" else options.val_videos
    for scene in range(videos // 2 if options.twins else videos):
        first, second = PAIRS[scene % len(PAIRS)]
        if options.twins:
            yield scene, (first, second)
        else:
            yield scene, ((first, second)[scene // len(PAIRS) % 2],)


def draw(split: Split, scene: int, labels: tuple[str, ...], options: ShapesOptions) -> list[NDArray[np.uint8]]:
    """Return a scene's frames for each of its labels, uint8 `[frames, size, size, 3]`; the second is the first reversed."""
    seed = (options.seed, SPLITS.index(split), scene)
    clip = scene_frames(labels[0], size=options.size, frames=options.frames, shake=options.shake, seed=seed)
    return [clip, clip[::-1]][: len(labels)]


def _video_path(split: Split, label: str, scene: int) -> Path:
    return Path(split, label, f"{scene:05d}.mp4")


def _write_scenes(folder: Path, options: ShapesOptions, workers: int) -> None:
    jobs: list[tuple[Split, list[tuple[int, tuple[str, ...]]]]] = []
    for split in SPLITS:
        numbered = list(scenes(split, options))
        for at in range(0, len(numbered), _CHUNK):
            jobs.append((split, numbered[at : at + _CHUNK]))
    with progress() as bar:
        task = bar.add_task("Moving Shapes", total=options.train_videos + options.val_videos)
        if workers == 1 or len(jobs) <= 1:
            for split, chunk in jobs:
                bar.advance(task, _write_chunk(folder, split, chunk, options))
            return
        with WorkerPool(min(workers, len(jobs))) as pool:
            futures = [pool.submit(_write_chunk, folder, split, chunk, options) for split, chunk in jobs]
            try:
                for future in as_completed(futures):
                    bar.advance(task, future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _write_chunk(folder: Path, split: Split, chunk: list[tuple[int, tuple[str, ...]]], options: ShapesOptions) -> int:
    """Draw and encode some scenes; return the number of videos."""
    from flowless.pipeline.video.encode import write_video  # imported here: drawing needs no PyAV

    written = 0
    for scene, labels in chunk:
        for label, frames in zip(labels, draw(split, scene, labels, options), strict=True):
            write_video(folder / _video_path(split, label, scene), frames, fps=FPS, codec="libx264", options=_X264)
            written += 1
    return written


def _index(folder: Path, split: Split, options: ShapesOptions, workers: int) -> DatasetIndex:
    """Return the index of a split, identical to that of a scan."""
    from flowless.pipeline.dataset.scan_jobs import Job, run_jobs  # imported here: drawing needs no PyAV

    paths = [(_video_path(split, label, scene), label) for scene, labels in scenes(split, options) for label in labels]
    names = sorted((path.relative_to(split).as_posix(), label) for path, label in paths)
    jobs = [Job(path=str(folder / split / name), parts=((None, None),), decode=True) for name, _ in names]
    found = {job.path: finding for job, finding in run_jobs(jobs, workers=workers)}
    videos = []
    for job, (name, label) in zip(jobs, names, strict=True):
        info = found[job.path].info
        if info is None:
            raise FlowlessError(f"{job.path}: it was written but cannot be read back: {found[job.path].reason}. Check the disk.")
        videos.append(
            VideoRecord(id=name, path=name, label=CLASSES.index(label), frames=info.frames, info=info, stamp=found[job.path].stamp)
        )
    return DatasetIndex(root=folder / split, labels=CLASSES, videos=tuple(videos))
