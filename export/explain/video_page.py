"""An explanation as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowless import __version__, html_pages
from flowless.engines.engine import softmax
from flowless.export.explain.cue_pictures import heat_stops, overlaid, paint, reach_of, wheel
from flowless.export.explain.cues import Cue, timescale_names, timescales
from flowless.export.explain.explain_video import Explanation
from flowless.export.explain.grad_cam import BranchMaps
from flowless.export.explain.introspection import BranchSeen


def write_page(path: Path, explanation: Explanation) -> None:
    """Write the page, whole or not at all."""
    html_pages.write_text(path, render(explanation))


def render(explanation: Explanation) -> str:
    """Return the page's HTML; it refers to nothing outside itself."""
    cue = explanation.cue
    return html_pages.rendered(
        Path(__file__).with_name("video_page.html"),
        it=explanation,
        name=Path(explanation.video).name,
        cue=cue,
        legend=None if cue is None else _legend(cue, explanation),
        segments=_segments(explanation),
        cams=[_cam(cam, explanation) for cam in explanation.cams],
        shown=explanation.labels[explanation.shown_class],
        heat=heat_stops(),
        sharp=explanation.spec.width < 160,
        answers=_answers(explanation),
        branches=[_branch(branch, explanation) for branch in explanation.seen.branches],
        version=__version__,
    )


def _segments(explanation: Explanation) -> list[dict[str, Any]]:
    """Return each segment's frames and cue as data addresses: the first frame and the mean cue for a glance, and all of them."""
    cue = explanation.cue
    painted, glance = None, None
    if cue is not None:
        reach = reach_of(cue)
        painted = paint(cue, reach=reach)[0]
        mean = Cue(name=cue.name, kind=cue.kind, over=cue.over, values=cue.values.mean(2, keepdims=True), meaning=cue.meaning)
        glance = paint(mean, reach=reach)[0, :, 0]
    return [
        {
            "frames": [
                {"ordinal": int(ordinal), "seconds": explanation.seconds(int(ordinal)), "picture": picture(frame)}
                for ordinal, frame in zip(explanation.places[number], explanation.clip[number], strict=True)
            ],
            "maps": [] if painted is None else [picture(one) for one in painted[number]],
            "glance": None if glance is None else picture(glance[number]),
        }
        for number in range(len(explanation.places))
    ]


def _cam(cam: BranchMaps, explanation: Explanation) -> dict[str, Any]:
    """Return a branch's Grad-CAM over each segment's first frame, its strongest place in the fullest colour."""
    maps = cam.values[0]
    strongest = float(maps.max())
    pictures = overlaid(explanation.clip[:, 0], maps, reach=strongest or 1.0)
    cells = f"{maps.shape[1]} × {maps.shape[2]}"
    return {
        "branch": cam.branch,
        "layer": cam.layer,
        "places": cells,
        "pictures": [picture(one) for one in pictures],
        "none": not strongest,
    }


def _answers(explanation: Explanation) -> list[dict[str, Any]]:
    """Return the named classes with their probability, in all and by each branch."""
    apart = softmax(explanation.branch_scores)
    return [{"label": answer.label, "share": answer.score, "branches": apart[:, answer.index].tolist()} for answer in explanation.top]


def _branch(branch: BranchSeen, explanation: Explanation) -> dict[str, Any]:
    """Return a branch's rows: the named classes' probability by each segment alone, and VAP's weights."""
    rows, weights, sums, segments = [], [], {}, len(explanation.places)
    if branch.segment_scores is not None:
        apart = softmax(branch.segment_scores[0])
        rows = [{"label": answer.label, "shares": apart[:, answer.index].tolist()} for answer in explanation.top]
    if branch.timescale_weights is not None:
        found = branch.timescale_weights[0]
        sums = {scale: 0.0 for scale, _ in timescales(segments)}
        for (scale, _), weight in zip(timescales(segments), found, strict=True):
            sums[scale] += float(weight)
        weights = [
            {"name": name, "pooled": pooled, "weight": float(weight), "width": float(weight / found.max())}
            for name, pooled, weight in zip(timescale_names(segments), _pooled(segments), found, strict=True)
        ]
    averaged = branch.segment_scores is not None and np.allclose(branch.segment_scores.mean(1), branch.scores, rtol=1e-3, atol=1e-3)
    return {"name": branch.name, "rows": rows, "weights": weights, "sums": sums, "averaged": averaged}


def _pooled(segments: int) -> list[list[bool]]:
    """Return for each of VAP's vectors which segments it pools: those that lie s apart."""
    return [[place % scale == first for place in range(segments)] for scale, first in timescales(segments)]


def _legend(cue: Cue, explanation: Explanation) -> dict[str, Any]:
    """Return what the colours mean."""
    reach = reach_of(cue)
    if cue.kind == "flow":
        pixels = reach * explanation.spec.height / cue.values.shape[-2]
        return {"kind": "flow", "picture": picture(wheel(96)), "text": f"full colour: {pixels:.1f} pixels a frame"}
    if cue.kind == "map":
        return {"kind": "scale", "colours": heat_stops(), "low": "0", "high": f"{reach:.3g}"}
    return {"kind": "scale", "colours": "black, #808080, white", "low": f"−{reach:.3g}", "high": f"+{reach:.3g}"}


def picture(pixels: NDArray[np.uint8]) -> str:
    """Return uint8 `[H, W, 3]` or `[H, W, 4]` as a data address, an order of magnitude smaller than PNG where pixels are photographs."""
    from PIL import Image

    stream = io.BytesIO()
    small = min(pixels.shape[:2]) < 160 or pixels.shape[2] == 4
    Image.fromarray(pixels).save(stream, format="webp", lossless=small, quality=90)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
