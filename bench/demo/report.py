"""The demo's page: one self-contained HTML file of what was done, trained, built and predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from flowless import __version__, html_pages, plots
from flowless.bench.demo.demo_engines import grouped, is_unmeasured
from flowless.machine import environment


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the page shows beyond the summary's figures; its template reads these by name."""

    labels: tuple[str, ...]
    """Actions, each beside its reversal."""
    counts: Mapping[str, int]
    """Videos of each split."""
    histories: Mapping[str, Sequence[Mapping[str, float]]]
    """Model -> rows of its metrics.csv."""
    confusions: Mapping[str, np.ndarray]
    """Model -> counts `[true, predicted]` on the validation videos."""
    strips: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """Label -> frames uint8 `[T, H, W, 3]` of one video and its PA maps `[T, H, W]`."""
    vap_weights: Mapping[str, np.ndarray]
    """Label -> mean weight of each pooled vector, `[N - 1]`."""
    timescales: tuple[str, ...]
    """Name of each pooled vector."""
    predictions: Mapping[str, Any]
    """`target`, `total`, `right`, `videos_per_s`, and `rows` of single videos."""
    trials: Sequence[Mapping[str, Any]]
    """A row for each precision of each target that was tried, as the bundle's manifest holds them."""
    calibration: Mapping[str, Any] | None
    """How int8 was calibrated, as the bundle's manifest holds it."""
    judged_on: int
    """Validation videos that top-1 was judged on before an engine was kept."""
    max_drop: float
    """Points of top-1, of 100, that a lower precision was allowed to lose."""
    seed: int
    commands: str
    """Commands to go on with."""


def render(summary: Mapping[str, Any], evidence: Evidence) -> str:
    """Return the page's HTML; it refers to nothing outside itself.

    Args:
        summary: The content of summary.json: `accuracy`, `engines`, `seconds`.
        evidence: What the pictures and tables are drawn from.
    """
    from markupsafe import Markup

    engines = engine_table(summary["engines"], evidence.trials)
    found = {name: pair_shares(matrix) for name, matrix in evidence.confusions.items()}
    pictures = {
        "stages": plots.stage_bars(summary["seconds"]),
        "curves": plots.learning_curves(evidence.histories, chance=1 / len(evidence.labels), ceiling=0.5),
        "confusion_tsn": plots.confusion(evidence.confusions["tsn"], evidence.labels, title="TSN", group=2),
        "confusion_pan": plots.confusion(evidence.confusions["pan-lite"], evidence.labels, title="PAN-Lite", group=2),
        "engines": plots.engine_bars(engines),
        "vap": plots.vap_weights(evidence.vap_weights, timescales=evidence.timescales),
    }
    return html_pages.rendered(
        Path(__file__).with_name("report.html"),
        **{field.name: getattr(evidence, field.name) for field in fields(evidence)},
        summary=summary,
        plots={name: Markup(svg) for name, svg in pictures.items()},  # ours, so not to be escaped
        pairs={name: share[0] for name, share in found.items()},
        twins={name: share[1] for name, share in found.items()},
        pictures=[{"label": label, "picture": plots.motion_strip(*strip)} for label, strip in evidence.strips.items()],
        engines=engines,
        environment=environment(),
        version=__version__,
        total=round(sum(summary["seconds"].values())),
        number=lambda value, form: "–" if value is None else form % value,
    )


def engine_table(rows: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the summary's engines as the page shows them.

    Each row also has `verdict` and `reason` (the status before and behind its colon), `unmeasured`, `kept`, `drop` (points of top-1, of
    100, below fp32 on the same videos), `snr_db`, and whether it is `recommended`.
    """
    exact = {row["target"]: row["top1"] for row in rows if row["precision"] == "fp32"}
    found = {(trial["target"], trial["precision"]): trial for trial in trials}
    table = []
    for row in grouped(rows):
        verdict, _, reason = row["status"].partition(": ")
        trial = found.get((row["target"], row["precision"]), {})
        # An engine that was not kept was evaluated on the videos of its gate alone, beside fp32.
        best = trial.get("fp32_top1") if reason else exact.get(row["target"])
        drop = None if row["top1"] is None or best is None or row["precision"] == "fp32" else 100 * (best - row["top1"])
        more = {"verdict": verdict, "reason": reason, "unmeasured": is_unmeasured(row), "kept": not reason, "drop": drop}
        table.append({**row, **more, "snr_db": trial.get("snr_db"), "recommended": bool(trial.get("recommended"))})
    return table


def pair_shares(confusion: np.ndarray) -> tuple[float, float]:
    """Return the share of videos classified as their action or its reversal, and of these the share that is right.

    Args:
        confusion: Counts `[true, predicted]`; classes 2i and 2i + 1 are each other's reversal.
    """
    pairs = confusion.reshape(len(confusion) // 2, 2, len(confusion) // 2, 2)
    named = float(np.einsum("iaib->", pairs))
    return named / max(1, int(confusion.sum())), float(np.trace(confusion)) / max(1.0, named)
