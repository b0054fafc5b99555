"""Reference clips that engines are compared on, with PyTorch's scores, kept in the bundle for every later build."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowless.errors import FlowlessError
from flowless.files import whole_file
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.video.encode import write_video

#: Number of clips from videos that the bundle keeps.
KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Clips and PyTorch's scores of them."""

    names: tuple[str, ...]
    """Where each clip came from."""
    clips: np.ndarray
    """uint8 `[K, N, m, H, W, 3]`."""
    scores: np.ndarray
    """float32 `[K, classes]`."""
    film_scores: np.ndarray | None = None
    """Of a streaming bundle: PyTorch's scores at every frame of `film_of`, float32 `[T, classes]`."""

    def save(self, path: str | os.PathLike[str], spec: ClipSpec) -> None:
        """Write the file of a bundle: two clips from videos, compressed, and the scores of these and of the made clips.

        The made clips (noise, stillness, edges) do not compress, and need not be stored: `made_clips` gives them again,
        bit by bit. At 224 x 224 and 8 x 4 frames the file is a few megabytes.
        """
        made = made_clips(spec)
        videos = [index for index, name in enumerate(self.names) if name not in made][:KEPT]
        order = [*videos, *(self.names.index(name) for name in made)]
        film: dict[str, Any] = {} if self.film_scores is None else {"film_scores": self.film_scores}
        with whole_file(path) as draft, draft.open("wb") as stream:
            np.savez_compressed(
                stream,
                **film,
                names=np.array([self.names[index] for index in videos], dtype=np.str_),
                clips=self.clips[videos],
                scores=self.scores[order],
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str], spec: ClipSpec) -> Reference:
        """Read the file of a bundle; raise FlowlessError where it is damaged."""
        made = made_clips(spec)
        try:
            with np.load(path, allow_pickle=False) as stored:
                names, clips, scores = (stored[name] for name in ("names", "clips", "scores"))
                film = stored.get("film_scores")
            if clips.dtype != np.uint8 or clips.shape[1:] != spec.shape or len(scores) != len(clips) + len(made):
                raise ValueError(f"clips {clips.dtype} {clips.shape}, {len(scores)} scores")
            if film is not None and film.shape != (2 * spec.segments, *scores.shape[1:]):
                raise ValueError(f"film_scores {film.shape}")
        except (OSError, ValueError, KeyError) as error:
            raise FlowlessError(f"{path}: not the reference clips of this bundle ({error}). Export the model again.") from error
        everything = np.concatenate([clips, *(clip[None] for clip in made.values())])
        return cls(names=(*map(str, names), *made), clips=everything, scores=scores, film_scores=film)


def film_of(reference: Reference) -> np.ndarray:
    """Return the frames that a streaming engine is compared on one after another, uint8 `[2 N, H, W, 3]`.

    They are twice as many as the steps that its features come from: those of the first clip, forwards and then backwards.
    """
    segments, _, *picture = reference.clips.shape[1:]
    frames = reference.clips[0].reshape(-1, *picture)
    return np.concatenate([frames, frames[::-1]])[: 2 * segments]


def made_clips(spec: ClipSpec) -> dict[str, np.ndarray]:
    """Return three clips that probe what videos do not: noise, stillness, and edges of full contrast that jump.

    Integer arithmetic alone, so that every machine and every version makes the same bytes.
    """
    size = int(np.prod(spec.shape))
    bits = np.arange(size, dtype=np.uint32) * np.uint32(2654435761)
    bits ^= bits >> np.uint32(15)
    bits *= np.uint32(2246822519)
    bits ^= bits >> np.uint32(13)
    noise = (bits >> np.uint32(16)).astype(np.uint8).reshape(spec.shape)
    still = np.broadcast_to(noise[:1, :1], spec.shape).copy()
    edges = np.zeros(spec.shape, np.uint8)
    for segment in range(spec.segments):
        for frame in range(spec.frames_per_segment):
            step = segment + frame
            edges[segment, frame, :, (step * 5) % spec.width :, 0] = 255
            edges[segment, frame, (step * 3) % spec.height :, :, 1] = 255
            edges[segment, frame, :, ::2, 2] = 255 * (step % 2)
    return {"made: noise": noise, "made: still": still, "made: edges": edges}


def video_clips(paths: Sequence[str | os.PathLike[str]], spec: ClipSpec) -> dict[str, np.ndarray]:
    """Return the first view of each video, decoded and preprocessed as a prediction's."""
    return {f"video: {Path(path).name} ({index})": load_clip(path, spec)[0] for index, path in enumerate(paths)}


def gather_clips(spec: ClipSpec, videos: Sequence[str | os.PathLike[str]] = ()) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the names and clips, uint8 `[K, N, m, H, W, 3]`, that a model is compared on.

    Args:
        spec: What a clip is.
        videos: Real videos; without any, three are generated, encoded as H.264 and decoded again.
    """
    if isinstance(videos, str | os.PathLike):
        raise FlowlessError(f"videos is {os.fspath(videos)!r}; it must be a list of videos.")
    if videos:
        found = video_clips(videos, spec)
    else:
        with tempfile.TemporaryDirectory(prefix="flowless-reference-") as folder:
            found = video_clips([_generated_video(Path(folder) / f"{way}.mp4", spec, way) for way in ("right", "down", "grow")], spec)
    found.update(made_clips(spec))
    return tuple(found), np.stack(list(found.values()))


def _generated_video(path: Path, spec: ClipSpec, way: str) -> Path:
    """Encode a textured square that moves over a textured ground."""
    count = max(2 * spec.segments * spec.frames_per_segment, 16)
    side = max(64, 2 * (spec.short_side // 2))
    rng = np.random.default_rng(sum(map(ord, way)))
    coarse = rng.integers(40, 216, (side // 8 + 1, side // 8 + 1, 3), dtype=np.uint8)
    ground = coarse.repeat(8, 0).repeat(8, 1)[:side, :side]
    square = rng.integers(0, 256, (side, side, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)

    def frames():
        for index in range(count):
            frame, done = ground.copy(), index / (count - 1)
            size = side // 4 + (int(done * side / 2) if way == "grow" else 0)
            x = int(done * (side - size)) if way == "right" else (side - size) // 2
            y = int(done * (side - size)) if way == "down" else (side - size) // 2
            frame[y : y + size, x : x + size] = square[:size, :size]
            yield frame

    write_video(path, frames(), fps=25)
    return path
