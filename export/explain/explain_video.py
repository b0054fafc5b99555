"""Explain a model's prediction for one video: its motion cue, Grad-CAM, and the scores of each branch and segment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from flowless.console import progress
from flowless.engines.engine import Label, likeliest
from flowless.errors import FlowlessError
from flowless.export.explain.cue_pictures import reach_of
from flowless.export.explain.cues import Cue, timescale_names
from flowless.export.explain.grad_cam import BranchMaps
from flowless.export.explain.introspection import BranchOutputs, Floats, InspectableModel, ModelInfo
from flowless.pipeline.clip.preprocess import load_views
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.view_scores import average_views
from flowless.pipeline.video.info import VideoInfo
from flowless.pipeline.video.open_reader import open_reader

#: Views that run together: a network's inner tensors are much larger than its scores.
_BATCH_SIZE = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoExplanation:
    """A prediction for one video and what it rests on. Pictures, segments and weights are those of the first view."""

    video: str
    """The file, as it was given."""
    info: VideoInfo
    model: ModelInfo
    top: tuple[Label, ...]
    """The likeliest classes, first the predicted one, with the softmax of the video's scores, as `flowless predict` prints them."""
    scores: Floats
    """`[classes]`, averaged over the views by the average of the spec."""
    branch_scores: Floats
    """`[branches, classes]`, averaged over the views likewise."""
    frame_indices: NDArray[np.int64]
    """`[N, m]`: the first view's frames, counted from 0."""
    clip: NDArray[np.uint8]
    """`[N, m, H, W, 3]`: the first view."""
    cue: Cue | None
    """The first view's motion cue (B = 1); None where the model has none."""
    branches: tuple[BranchOutputs, ...]
    """The branches' outputs for the first view (B = 1)."""
    cam_class: int
    """The class of Grad-CAM."""
    cams: tuple[BranchMaps, ...]
    """The branches' Grad-CAM of the first view (B = 1); empty for a bundle, which has no gradients."""

    def seconds(self, frame: int) -> float | None:
        """Return a frame's time in seconds after the first frame; None where the file has no timestamps."""
        if self.info.pts:
            return float((self.info.pts[frame] - self.info.pts[0]) * self.info.time_base)
        return frame / self.info.fps if self.info.fps else None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: all numbers but the pixels'."""
        return {
            "video": self.video,
            "model": self.model.name,
            "source": self.model.source,
            "views": self.model.spec.views,
            "top": [{"label": item.label, "index": item.index, "score": item.score} for item in self.top],
            "scores": self.scores.tolist(),
            "labels": list(self.model.labels),
            "segments": [
                {"frames": frames.tolist(), "seconds": self.seconds(int(frames[0]))} | self._mean_cue(segment)
                for segment, frames in enumerate(self.frame_indices)
            ],
            "grad_cam": self._grad_cam(),
            "branches": [self._branch(branch, scores) for branch, scores in zip(self.branches, self.branch_scores, strict=True)],
            "cue": None
            if self.cue is None
            else {
                "name": self.cue.name,
                "kind": self.cue.kind,
                "over": self.cue.over,
                "shape": list(self.cue.values.shape[1:]),
                "reach": reach_of(self.cue),
                "meaning": self.cue.meaning,
            },
        }

    def _mean_cue(self, segment: int) -> dict[str, float]:
        """Return the mean magnitude of a segment's cue."""
        if self.cue is None:
            return {}
        return {"mean_cue": float(self.cue.magnitudes[0, segment].mean())}

    def _grad_cam(self) -> dict[str, Any] | None:
        if not self.cams:
            return None
        maps = [{"branch": cam.branch or None, "layer": cam.layer, "maps": cam.values[0].tolist()} for cam in self.cams]
        return {"label": self.model.labels[self.cam_class], "index": self.cam_class, "branches": maps}

    def _branch(self, branch: BranchOutputs, scores: Floats) -> dict[str, Any]:
        weights, names = branch.timescale_weights, timescale_names(self.model.spec.segments)
        return {
            "name": branch.name or None,
            "scores": scores.tolist(),
            "segment_scores": None if branch.segment_scores is None else branch.segment_scores[0].tolist(),
            "timescales": None if weights is None else dict(zip(names, weights[0].tolist(), strict=True)),
        }


def explain_video(model: InspectableModel, video: str | os.PathLike[str], *, top: int = 5, label: str | None = None) -> VideoExplanation:
    """Predict a video's class and collect what the prediction rests on.

    Args:
        model: The model, from `open_model`.
        video: The file.
        top: Number of classes to list.
        label: The class of Grad-CAM; by default the predicted one.

    Raises:
        FlowlessError: The video cannot be read, `top` is below 1, or the model has no gradients or no such label.
    """
    if top < 1:
        raise FlowlessError(f"top is {top}; it must be at least 1.")
    cam_class = None if label is None else _class_index(label, model)
    spec = model.info.spec
    with open_reader(video) as reader:
        views = load_views(reader, spec)
        info = reader.info  # after decoding, which may find fewer frames than the container declares
    clip = views.cut(0, 1)
    with progress() as bar:
        task = bar.add_task(escape(f"explaining {Path(video).name}"), total=len(views))
        batches = [model.run(clip)]
        bar.advance(task)
        for start in range(1, len(views), _BATCH_SIZE):
            clips = views.cut(start, start + _BATCH_SIZE)
            batches.append(model.run(clips))
            bar.advance(task, len(clips))
    scores = average_views(np.concatenate([batch.scores for batch in batches]), spec.average)
    branch_scores = np.concatenate([np.stack([branch.scores for branch in batch.branches]) for batch in batches], axis=1)
    cam_class = int(scores.argmax()) if cam_class is None else cam_class
    indices = clip_indices(info.frames, segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
    return VideoExplanation(
        video=os.fspath(video),
        info=info,
        model=model.info,
        top=likeliest(scores, model.info.labels, top),
        scores=scores,
        branch_scores=average_views(branch_scores, spec.average),
        frame_indices=indices[0],
        clip=clip[0],
        cue=model.cue(clip),
        branches=batches[0].branches,
        cam_class=cam_class,
        cams=model.grad_cam(clip, index=cam_class),
    )


def _class_index(label: str, model: InspectableModel) -> int:
    if not model.has_gradients:
        raise FlowlessError(
            f"label is {label!r}, the class of Grad-CAM; that needs gradients, and {model.info.source} has none. Leave it out, or explain "
            f"the checkpoint that the bundle was exported from."
        )
    labels = model.info.labels
    if label in labels:
        return labels.index(label)
    near = get_close_matches(label, labels, n=5, cutoff=0.4) or labels[:5]
    raise FlowlessError(
        f"label is {label!r}, which is not one of the model's {len(labels)} labels. Give one of them, such as {', '.join(map(repr, near))}."
    )
