"""What every engine of the GPU suite goes through: PyTorch's scores at every batch, then latency and throughput."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from flowless.bench.gpu.clock import answer_ms, back_to_back_ms, figures, need_device
from flowless.bench.gpu.ledger import Ledger
from flowless.bench.gpu.network import Reference, compare_scores


class Runner(Protocol):
    """An opened engine."""

    def scores(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 scores `[B, classes]` of uint8 clips `[B, N, m, H, W, 3]`, both in the host's memory."""
        ...

    def placed(self, clips: np.ndarray) -> Callable[[], object]:
        """Put clips into the device's memory, and return what runs them once, answer and all staying there."""
        ...


def measure(ledger: Ledger, runner: Runner, reference: Reference, *, name: str, precision: str, batches: tuple[int, ...]) -> None:
    """Compare an engine with PyTorch and time it, at each batch.

    A row has the latency of a call whose clips lie in the device's memory (p50, p99), that of one from the host's memory and
    back, as `flowless.load` gives it, and clips a second of calls that do not wait for each other.
    """
    device = need_device(ledger.settings)
    most = ledger.settings.most_seconds
    for batch in batches:
        what = f"{name} {precision}, batch {batch}"
        if not ledger.in_time(what):
            continue
        compare(ledger, runner, reference, what=what, precision=precision, batch=batch)
        clips = reference.tiled(batch).clips[:batch]
        run = runner.placed(clips)
        waited = answer_ms(run, device=device, most_seconds=most)
        streamed = back_to_back_ms(run, device=device, most_seconds=most)
        host = answer_ms(lambda clips=clips: runner.scores(clips), device=device, most_seconds=most / 2)
        ledger.row(
            name=name,
            precision=precision,
            batch=batch,
            **figures(waited),
            from_host_ms_p50=host.p50_ms,
            clips_per_s=round(1e3 * batch / max(streamed, 1e-6), 2),
        )


def compare(ledger: Ledger, runner: Runner, reference: Reference, *, what: str, precision: str, batch: int) -> None:
    """Compare all reference clips, `batch` at a time (and a remainder), with PyTorch's scores in float32."""
    wanted = reference.tiled(batch)
    parts = [runner.scores(wanted.clips[start : start + batch]) for start in range(0, len(wanted.clips), batch)]
    where = "GPU" if ledger.settings.device == "cuda" else "CPU"
    found = compare_scores(np.concatenate(parts), wanted.scores, precision=precision, device=where)
    ledger.check(what, **found)
