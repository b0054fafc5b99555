"""Achieved arithmetic of each engine, over what the card's matrix units were measured to do."""

from __future__ import annotations

from typing import Any

from flowless.bench.gpu.machine import tera_per_second


def add_shares(parts: dict[str, dict[str, Any]]) -> None:
    """Write `tflop_per_s` and `share_of_peak` into every engine's row of a document's parts, in place.

    A multiplication with its addition counts as two operations, on both sides. A row is counted by its own `macs_per_clip`, or
    else by those of the network that the engines run; a rate that its part measured itself stays. The peak is that of the row's own
    precision; a row whose peak was not measured gets no share.
    """
    peaks = peaks_of(parts.get("peak", {}))
    engines = parts.get("network", {}).get("facts", {}).get("macs_per_clip")
    for part in parts.values():
        for row in part["rows"]:
            if not row.get("clips_per_s") or "precision" not in row:
                continue
            if "tflop_per_s" not in row and (macs := row.get("macs_per_clip", engines)):
                row["tflop_per_s"] = tera_per_second(2 * macs * row["clips_per_s"], 1e3)
            peak = peaks.get(row["precision"])
            if peak and row.get("tflop_per_s"):
                row["share_of_peak"] = round(row["tflop_per_s"] / peak, 4)


def peaks_of(part: dict[str, Any]) -> dict[str, float]:
    """Return 10^12 operations per second by arithmetic, of the part `peak`."""
    return {row["arithmetic"]: row["tflop_per_s"] for row in part.get("rows", [])}
