"""What the papers say of their motion cues' speed and size, beside what a run measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flowless.bench.lib.goals import goal

#: Claims of speed over TV-L1: cue, the paper's numbers, their ratio, and where it stands.
_OVER_TV_L1 = (
    ("PA", "8196 fps, TV-L1 8 fps", 8196 / 8, "PAN, Table II and its supplement: one TITAN X, the same 8 stacks of 6 frames"),
    (
        "displacement map",
        "190 fps at 112 x 112, TV-L1 15 fps",
        190 / 15,
        "Disentangling, Table 3, on a TITAN X; its Table 9 counts the network behind the maps in",
    ),
)
#: Claims of size: cue, what is counted, the paper's number in the unit of a method's row, where.
_SIZES = (
    ("PA", "gmacs", 2.868, "PAN, Table I: 48 frames of 224 x 224; here differences are convolved, 5 of a stack and not 6"),
    ("PA", "parameters", 1184, "PAN, Table I"),
    ("dynamic appearance", "gmacs", 0.23, "Dynamic Appearance, Table 6: 48 frames"),
    ("dynamic appearance", "parameters", 7130, "Dynamic Appearance, Table 6"),
)
_UNITS = {"gmacs": "GMAC", "parameters": "parameters"}


def quickest(rows: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return each method's quickest row, of those that were timed, in their order."""
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if "frames_per_s" in row:
            found[row["method"]] = max(found.get(row["method"], row), row, key=lambda one: one["frames_per_s"])
    return found


def claims(rows: list[dict[str, Any]], methods: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return one row a claim: `what`, `paper` and `paper_ratio` or number, `ours` (None where it was not measured), `engine`, `where`.

    Args:
        rows: The run's rows; a cue's quickest one counts.
        methods: The run's methods, for the sizes; none are compared without them, or where the clip is not the papers'.
    """
    found: list[dict[str, Any]] = []
    best = quickest(rows)
    for cue, paper, ratio, where in _OVER_TV_L1:
        row = best.get(cue, {})
        ours, engine = row.get("times_tv_l1"), row.get("engine")
        what = f"{cue} over TV-L1, frames a second"
        found.append({"what": what, "paper": paper, "paper_ratio": round(ratio, 1), "ours": ours, "engine": engine, "where": where})
    sizes = {method["name"]: method for method in methods or ()}
    for cue, key, number, where in _SIZES:
        if cue in sizes:
            what = f"{cue}, {_UNITS[key]}"
            found.append(
                {"what": what, "paper": f"{number:g}", "paper_ratio": None, "ours": sizes[cue][key], "engine": None, "where": where}
            )
    return found


def goals(claimed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the goal that PAN's claim sets: a thousand times TV-L1, on the same frames and cores."""
    return [goal("PA's best engine over TV-L1, same frames, same cores", 1000, claimed[0]["ours"])]
