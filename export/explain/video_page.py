"""Render the explanation of one video as a self-contained HTML page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flowless.engines.engine import softmax
from flowless.export.explain.cue_pictures import heat_stops, overlaid, paint, reach_of, wheel
from flowless.export.explain.cues import Cue, timescale_names, timescales
from flowless.export.explain.explain_video import VideoExplanation
from flowless.export.explain.grad_cam import BranchMaps
from flowless.export.explain.introspection import BranchOutputs
from flowless.html_pages import image_uri, rendered


def render(explanation: VideoExplanation) -> str:
    """Return the page's HTML, which loads nothing from outside."""
    cue = explanation.cue
    branch_shares = softmax(explanation.branch_scores)
    return rendered(
        Path(__file__).with_name("video_page.html"),
        explanation=explanation,
        name=Path(explanation.video).name,
        cue=cue,
        legend=None if cue is None else _legend(cue, explanation.model.spec.height),
        segments=_segments(explanation),
        shown=explanation.model.shown,
        cams=[_cam(cam, explanation) for cam in explanation.cams],
        cam_label=explanation.model.labels[explanation.cam_class],
        heat=heat_stops(),
        sharp=explanation.model.spec.width < 160,
        classes=[{"label": item.label, "share": item.score, "branches": branch_shares[:, item.index]} for item in explanation.top],
        branches=[_branch(branch, explanation) for branch in explanation.branches],
    )


def _segments(explanation: VideoExplanation) -> list[dict[str, Any]]:
    """Return each segment's frames and cue pictures as data URIs, and the mean of its cue pictures."""
    cue = explanation.cue
    pictures, means = None, None
    if cue is not None:
        reach = reach_of(cue)
        pictures = paint(cue, reach=reach)[0]
        means = paint(replace(cue, values=cue.values.mean(2, keepdims=True)), reach=reach)[0, :, 0]
    return [
        {
            "frames": [
                {"index": index, "seconds": explanation.seconds(index), "picture": image_uri(frame)}
                for index, frame in zip(indices.tolist(), explanation.clip[number], strict=True)
            ],
            "cues": [] if pictures is None else [image_uri(picture) for picture in pictures[number]],
            "mean_cue": None if means is None else image_uri(means[number]),
        }
        for number, indices in enumerate(explanation.frame_indices)
    ]


def _cam(cam: BranchMaps, explanation: VideoExplanation) -> dict[str, Any]:
    """Return a branch's Grad-CAM over the frame that stands for each segment; the colour scale ends at its largest value."""
    maps = cam.values[0]
    largest = float(maps.max())
    return {
        "branch": cam.branch,
        "layer": cam.layer,
        "grid": f"{maps.shape[1]} × {maps.shape[2]}",
        "pictures": [image_uri(picture) for picture in overlaid(explanation.clip[:, explanation.model.shown], maps, reach=largest or 1.0)],
        "all_zero": not largest,
    }


def _branch(branch: BranchOutputs, explanation: VideoExplanation) -> dict[str, Any]:
    """Return a branch's tables: the listed classes' probability by each segment alone, and VAP's weights."""
    rows, weights, sums, averaged = [], [], {}, False
    if branch.segment_scores is not None:
        shares = softmax(branch.segment_scores[0])
        rows = [{"label": item.label, "shares": shares[:, item.index]} for item in explanation.top]
        averaged = np.allclose(branch.segment_scores.mean(1), branch.scores, rtol=1e-3, atol=1e-3)
    if branch.timescale_weights is not None:
        segments, values = explanation.model.spec.segments, branch.timescale_weights[0].tolist()
        for name, (scale, first), weight in zip(timescale_names(segments), timescales(segments), values, strict=True):
            pooled = [segment % scale == first for segment in range(segments)]
            weights.append({"name": name, "pooled": pooled, "weight": weight, "width": weight / max(values)})
            sums[scale] = sums.get(scale, 0.0) + weight
    return {"name": branch.name, "rows": rows, "averaged": averaged, "weights": weights, "sums": sums}


def _legend(cue: Cue, height: int) -> dict[str, Any]:
    """Return the legend of the colours, for frames of `height` rows."""
    reach = reach_of(cue)
    if cue.kind == "flow":
        pixels = reach * height / cue.values.shape[-2]
        return {"kind": "flow", "picture": image_uri(wheel(96)), "text": f"full colour: {pixels:.1f} pixels per frame"}
    if cue.kind == "map":
        return {"kind": "scale", "colours": heat_stops(), "low": "0", "high": f"{reach:.3g}"}
    return {"kind": "scale", "colours": "black, #808080, white", "low": f"−{reach:.3g}", "high": f"+{reach:.3g}"}
