"""Is an engine's answer PyTorch's answer? One table of tolerances, one comparison, used by export and build alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowless.engines.backends import Backend
from flowless.errors import CheckFailed

#: (precision, device) -> the largest difference of a score that passes, as a share of the scores' spread over clips.
#: fp32 leaves only the order of additions; a wrong mean, shift or frame order moves scores by tenths of the spread.
#: On a GPU fp32 kernels may add in long tiles, and Winograd forms round more. bf16 keeps 8 bits of mantissa, fp16 11.
TOLERANCE: dict[tuple[str, str], float] = {
    ("fp32", "CPU"): 1e-3,
    ("fp32", "GPU"): 3e-3,
    ("bf16", "CPU"): 0.2,
    ("bf16", "GPU"): 0.2,
    ("fp16", "CPU"): 0.05,
    ("fp16", "GPU"): 0.05,
}
#: Spread below this share of the largest score is taken for this share: float32 itself resolves no finer.
_LEAST_SPREAD = 2e-3
#: Batches that every comparison runs: one clip, and several with a remainder.
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

    @property
    def passed(self) -> bool:
        """Whether the difference is allowed; a difference that is no number is not."""
        return bool(self.max_abs_diff <= self.allowed)


def spread_of(scores: np.ndarray) -> float:
    """Return the spread over clips of scores `[K, classes]`."""
    deviation = float(np.sqrt(np.mean((scores - scores.mean(axis=0)) ** 2)))
    return max(deviation, _LEAST_SPREAD * float(np.abs(scores).max(initial=0.0)))


def compare(scores: np.ndarray, expected: np.ndarray, *, precision: str, device: str) -> Comparison:
    """Compare scores `[K, classes]` with PyTorch's of the same clips."""
    expected = expected.astype(np.float64)
    if scores.shape != expected.shape:
        raise CheckFailed(f"The engine gives scores of shape {scores.shape} where PyTorch gives {expected.shape}. Nothing was kept.")
    spread = spread_of(expected)
    return Comparison(
        clips=len(expected),
        max_abs_diff=float(np.abs(scores.astype(np.float64) - expected).max()),
        spread=spread,
        allowed=TOLERANCE[precision, device] * spread,
    )


def run_in_batches(backend: Backend, clips: np.ndarray, batch: int) -> np.ndarray:
    """Return scores of clips `[K, ...]`, `batch` at a time."""
    return np.concatenate([backend(np.ascontiguousarray(clips[start : start + batch])) for start in range(0, len(clips), batch)])


def check(backend: Backend, clips: np.ndarray, expected: np.ndarray, *, precision: str, what: str) -> Comparison:
    """Compare an engine with PyTorch at every batch size of `BATCHES`.

    Args:
        backend: The engine.
        clips: uint8 `[K, N, m, H, W, 3]`.
        expected: PyTorch's scores, `[K, classes]`.
        precision: The engine's arithmetic, a row of `TOLERANCE`.
        what: The engine's name, for the message.

    Returns:
        The worst comparison.

    Raises:
        CheckFailed: A score differs by more than the table allows.
    """
    runs = [compare(run_in_batches(backend, clips, batch), expected, precision=precision, device=backend.device) for batch in BATCHES]
    # A difference that is no number counts as the worst of all.
    worst = max(runs, key=lambda item: np.inf if np.isnan(item.max_abs_diff) else item.max_abs_diff)
    if not worst.passed:
        raise CheckFailed(
            f"{what}: its scores differ from PyTorch's by up to {worst.max_abs_diff:.3g} on {worst.clips} clips; "
            f"{precision} on the {backend.device} may differ by {worst.allowed:.3g} "
            f"({TOLERANCE[precision, backend.device]:g} of the scores' spread {worst.spread:.3g}). "
            "Nothing was kept: the engine computes something else."
        )
    return worst
