"""Comparison of an engine's scores with PyTorch's, with one table of tolerances for export and build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flowless.engines.streaming.memory import OnlineBackend
from flowless.engines.streaming.streaming_backend import StreamingBackend
from flowless.errors import CheckFailed, FlowlessError
from flowless.export.verify.reference import Reference, film_of

if TYPE_CHECKING:
    from flowless.engines.backends.backend import Backend


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far scores may lie from PyTorch's. Both are relative to the scores' spread over clips."""

    largest: float
    """Largest allowed difference of a score, as a share of the spread."""
    snr: float
    """Smallest allowed ratio of the scores' spread to the root mean square difference, in decibels: 20 is a tenth, 40 a hundredth."""


#: (precision, device) -> what passes. fp32 leaves only the order of additions; on a GPU fp32 kernels may add in long tiles, and
#: Winograd forms round more. bf16 keeps 8 bits of mantissa, fp16 11. int8 rounds every activation to 8 bits: measured on trained
#: PAN-Lite 28 to 32 dB with a largest difference of 0.15 to 0.3; a shift in the wrong direction leaves 3 dB, swapped labels 2.
TOLERANCE: dict[tuple[str, str], Tolerance] = {
    ("fp32", "CPU"): Tolerance(largest=1e-3, snr=60),
    ("fp32", "GPU"): Tolerance(largest=3e-3, snr=50),
    ("bf16", "CPU"): Tolerance(largest=0.2, snr=30),
    ("bf16", "GPU"): Tolerance(largest=0.2, snr=30),
    ("fp16", "CPU"): Tolerance(largest=0.05, snr=40),
    ("fp16", "GPU"): Tolerance(largest=0.05, snr=40),
    ("int8", "CPU"): Tolerance(largest=1.0, snr=16),
    ("int8", "GPU"): Tolerance(largest=1.0, snr=16),
}
#: Smallest spread, as a share of the largest score: float32 does not resolve smaller differences.
_LEAST_SPREAD = 2e-3
#: Batch sizes of every comparison: one clip, and several with a remainder.
BATCHES = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far an engine's scores lie from PyTorch's."""

    clips: int
    """Clips compared."""
    max_abs_diff: float
    """Largest difference of a score."""
    spread: float
    """How much scores vary from clip to clip: root mean square of their deviation from each class's mean."""
    allowed: float
    """Largest difference that passes."""
    snr: float
    """Spread over root mean square difference, in decibels; infinite where nothing differs."""
    least_snr: float
    """Least ratio that passes."""
    passed: bool
    """Whether both are within the limits; NaN is not."""


def spread_of(scores: np.ndarray) -> float:
    """Return the spread over clips of scores `[K, classes]`."""
    deviation = float(np.sqrt(np.mean((scores - scores.mean(axis=0)) ** 2)))
    return max(deviation, _LEAST_SPREAD * float(np.abs(scores).max(initial=0.0)))


def compare(scores: np.ndarray, expected: np.ndarray, *, precision: str, device: str) -> Comparison:
    """Compare scores `[K, classes]` with PyTorch's of the same clips."""
    if scores.shape != expected.shape:
        raise CheckFailed(f"The engine gives scores of shape {scores.shape} where PyTorch gives {expected.shape}. It was not kept.")
    expected = expected.astype(np.float64)
    spread = spread_of(expected)
    rule = TOLERANCE[precision, device]
    difference = np.abs(scores.astype(np.float64) - expected)
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = float(20 * np.log10(spread / np.sqrt(np.mean(difference**2))))
    largest, allowed = float(difference.max()), rule.largest * spread
    return Comparison(
        clips=len(expected),
        max_abs_diff=largest,
        spread=spread,
        allowed=allowed,
        snr=snr,
        least_snr=rule.snr,
        passed=largest <= allowed and snr >= rule.snr,
    )


def run_in_batches(backend: Callable[[np.ndarray], np.ndarray], clips: np.ndarray, batch: int) -> np.ndarray:
    """Return scores of clips `[K, ...]`, `batch` at a time."""
    return np.concatenate([backend(np.ascontiguousarray(clips[start : start + batch])) for start in range(0, len(clips), batch)])


def check(backend: Backend, reference: Reference, *, precision: str, what: str) -> Comparison:
    """Compare an engine with PyTorch at every batch size of `BATCHES`; an online or streaming engine also frame by frame.

    Args:
        backend: The engine.
        reference: Clips, with PyTorch's scores.
        precision: The engine's precision, a row of `TOLERANCE`.
        what: The engine's name, for the message.

    Returns:
        The worst comparison.

    Raises:
        CheckFailed: The scores differ by more than the table allows.
    """
    clips, expected = reference.clips, reference.scores
    runs = [compare(run_in_batches(backend, clips, batch), expected, precision=precision, device=backend.device) for batch in BATCHES]
    if isinstance(backend, OnlineBackend):
        shown = run_in_batches(backend.frame_by_frame, clips, max(BATCHES))
        runs.append(compare(shown, expected, precision=precision, device=backend.device))
    if isinstance(backend, StreamingBackend):
        if reference.film_scores is None:
            raise FlowlessError(f"{what}: the bundle's reference clips have no scores of a film. Export the model again.")
        # With the clips' scores, since scores vary less within one film.
        shown = np.concatenate([run_in_batches(backend, clips, 1), backend.film(film_of(reference))])
        both = np.concatenate([expected, reference.film_scores])
        runs.append(compare(shown, both, precision=precision, device=backend.device))
    # A failed comparison is worse than a passed one, and NaN is the worst.
    worst = max(runs, key=lambda item: (not item.passed, np.inf if np.isnan(item.max_abs_diff) else item.max_abs_diff))
    if not worst.passed:
        raise CheckFailed(
            f"{what}: its scores differ from PyTorch's by up to {worst.max_abs_diff:.3g} on {worst.clips} clips, {worst.snr:.0f} dB below "
            f"their spread of {worst.spread:.3g}; {precision} on the {backend.device} may differ by {worst.allowed:.3g} "
            f"({TOLERANCE[precision, backend.device].largest:g} of the spread) and must stay {worst.least_snr:g} dB below. "
            "It was not kept: it computes something else."
        )
    return worst
