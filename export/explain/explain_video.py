"""Why a model answers as it does of one video: its cue over the frames, its branches', segments' and timescales' shares."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
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
from flowless.export.explain.introspection import BranchSeen, Floats, Looker, Seen
from flowless.pipeline.clip.preprocess import load_views
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.clip.view_scores import average_views
from flowless.pipeline.video.info import VideoInfo
from flowless.pipeline.video.open_reader import open_reader

#: Views that are looked at together: what is opened of a network is much larger than its scores.
_VIEWS_AT_ONCE = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What a model saw in a video, and said of it. Pictures, segments and weights are the first view's."""

    video: str
    """The file, as it was named."""
    info: VideoInfo
    """What is known of the file."""
    model: str
    """The model's name."""
    source: str
    """What ran."""
    spec: ClipSpec
    """What a clip is."""
    labels: tuple[str, ...]
    """Class names in the order of the scores."""
    top: tuple[Label, ...]
    """Likeliest classes first: softmax of the video's scores, as `flowless predict` answers."""
    scores: Floats
    """`[classes]`: the scores, averaged over the views by `spec.average`."""
    branch_scores: Floats
    """`[branches, classes]`, averaged over the views likewise."""
    places: NDArray[np.int64]
    """`[N, m]`: the first view's frames, counted from 0."""
    clip: NDArray[np.uint8]
    """`[N, m, H, W, 3]`: the first view."""
    seen: Seen
    """What the model saw in the first view (B = 1)."""
    shown_class: int
    """The class that Grad-CAM is shown for."""
    cams: tuple[BranchMaps, ...]
    """The branches' Grad-CAM of the first view (B = 1); none where what ran has no gradients."""

    @property
    def cue(self) -> Cue | None:
        """The first view's cue, None where the model has none."""
        return self.seen.cue

    def seconds(self, frame: int) -> float | None:
        """Return when a frame is shown, in seconds after the first; None where the file does not say."""
        if self.info.pts:
            return float((self.info.pts[frame] - self.info.pts[0]) * self.info.time_base)
        return frame / self.info.fps if self.info.fps else None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: all numbers but the pixels'."""
        cue = self.cue
        return {
            "video": self.video,
            "model": self.model,
            "source": self.source,
            "views": self.spec.views,
            "top": [{"label": item.label, "index": item.index, "score": item.score} for item in self.top],
            "scores": self.scores.tolist(),
            "labels": list(self.labels),
            "segments": [
                {"frames": frames.tolist(), "seconds": self.seconds(int(frames[0]))} | self._strength(number)
                for number, frames in enumerate(self.places)
            ],
            "grad_cam": self._grad_cam(),
            "branches": [self._branch(branch, scores) for branch, scores in zip(self.seen.branches, self.branch_scores, strict=True)],
            "cue": None
            if cue is None
            else {
                "name": cue.name,
                "kind": cue.kind,
                "over": cue.over,
                "shape": list(cue.values.shape[1:]),
                "reach": reach_of(cue),
                "meaning": cue.meaning,
            },
        }

    def _strength(self, segment: int) -> dict[str, float]:
        """How much the cue shows in one segment: the mean of its values, of a flow's lengths, of colours' sizes."""
        if self.cue is None:
            return {}
        values = self.cue.values[0, segment]
        sizes = np.hypot(values[:, 0], values[:, 1]) if self.cue.kind == "flow" else np.abs(values)
        return {"mean_cue": float(sizes.mean())}

    def _grad_cam(self) -> dict[str, Any] | None:
        if not self.cams:
            return None
        maps = [{"branch": cam.branch or None, "layer": cam.layer, "maps": cam.values[0].tolist()} for cam in self.cams]
        return {"label": self.labels[self.shown_class], "index": self.shown_class, "branches": maps}

    def _branch(self, branch: BranchSeen, scores: Floats) -> dict[str, Any]:
        weights = branch.timescale_weights
        return {
            "name": branch.name or None,
            "scores": scores.tolist(),
            "segment_scores": None if branch.segment_scores is None else branch.segment_scores[0].tolist(),
            "timescales": None if weights is None else dict(zip(timescale_names(len(self.places)), weights[0].tolist(), strict=True)),
        }


def explain(looker: Looker, video: str | os.PathLike[str], *, top: int = 5, label: str | None = None) -> Explanation:
    """Let a model look at a video, and tell what it saw.

    Args:
        looker: What `open_looker` opened.
        video: The file.
        top: Number of classes to name.
        label: The class to show Grad-CAM for; by default the answer.

    Raises:
        FlowlessError: The video cannot be read, `top` is below 1, or the model has no gradients or no such label.
    """
    if top < 1:
        raise FlowlessError(f"top is {top}; it must be at least 1.")
    asked = None if label is None else _index_of(label, looker)
    spec = looker.spec
    with open_reader(video) as reader:
        views = load_views(reader, spec)
        info = reader.info  # behind the views: they may have found fewer frames than the packets promise
    rows: list[Floats] = []
    branches: list[Floats] = []
    first: Seen | None = None
    with progress() as bar:
        task = bar.add_task(escape(f"looking at {Path(video).name}"), total=len(views))
        for clips in views.parts(_VIEWS_AT_ONCE):
            seen = looker.look(clips)
            rows.append(seen.scores)
            branches.append(np.stack([branch.scores for branch in seen.branches]))
            first = first or _first(seen)
            bar.advance(task, len(clips))
    assert first is not None
    scores = average_views(np.concatenate(rows), spec.average)
    shown = int(scores.argmax()) if asked is None else asked
    clip = views.cut(0, 1)
    indices = clip_indices(info.frames, segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
    return Explanation(
        video=os.fspath(video),
        info=info,
        model=looker.model,
        source=looker.source,
        spec=spec,
        labels=looker.labels,
        top=likeliest(scores, looker.labels, top),
        scores=scores,
        branch_scores=average_views(np.concatenate(branches, axis=1), spec.average),
        places=indices[0],
        clip=clip[0],
        seen=first,
        shown_class=shown,
        cams=looker.grad_cam(clip, index=shown),
    )


def _index_of(label: str, looker: Looker) -> int:
    labels = looker.labels
    if not looker.has_gradients:
        raise FlowlessError(
            f"label is {label!r}, the class of Grad-CAM; that needs gradients, and {looker.source} has none. Leave it out, or explain the "
            f"checkpoint that the bundle was exported from."
        )
    if label in labels:
        return labels.index(label)
    near = get_close_matches(label, labels, n=5, cutoff=0.4) or labels[:5]
    raise FlowlessError(
        f"label is {label!r}, which is none of the model's {len(labels)}. Name one of them, such as {', '.join(map(repr, near))}."
    )


def _first(seen: Seen) -> Seen:
    """Keep the first clip alone, and nothing of the others in memory."""

    def one(values: Floats | None) -> Any:
        return None if values is None else values[:1].copy()

    branches = (
        replace(
            branch,
            scores=one(branch.scores),
            features=one(branch.features),
            segment_scores=one(branch.segment_scores),
            timescale_weights=one(branch.timescale_weights),
        )
        for branch in seen.branches
    )
    cue = None if seen.cue is None else replace(seen.cue, values=one(seen.cue.values))
    return Seen(scores=one(seen.scores), branches=tuple(branches), cue=cue)
