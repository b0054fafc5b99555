"""The parts `network` and `graphs` of the GPU suite: the one network that all engines run, its scores by PyTorch, its graphs.

The weights are random (`networks.lively_model`). So that clips get scores of their own, as those of a trained network would,
the clips differ in contrast and brightness: of plain noise every clip gets nearly the same scores, and their spread, by which
differences are judged, is less than the rounding of half precision. Measured with these clips on PAN-Lite R50, on a CPU:
bf16 31 to 33 dB, fp16 48 dB, frames in reverse order 12 to 14 dB.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowless.bench.gpu.ledger import Ledger, NotHere, Settings
from flowless.files import whole_file, write_json
from flowless.pipeline.clip.spec import ClipSpec

#: Contrast and mean brightness of each clip.
_LOOKS = ((0.1, 40), (0.5, 90), (0.9, 128), (0.3, 160), (0.7, 200), (1.0, 128))
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_CLASSES = 174


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Clips uint8 `[K, N, m, H, W, 3]` and PyTorch's float32 scores `[K, classes]` of them."""

    clips: np.ndarray
    scores: np.ndarray

    def tiled(self, count: int) -> Reference:
        """Return `count` clips at least K, the K ones over and over."""
        places = np.arange(max(count, len(self.clips))) % len(self.clips)
        return Reference(clips=np.ascontiguousarray(self.clips[places]), scores=self.scores[places])


def spec_of(settings: Settings) -> ClipSpec:
    """Return what a clip is: 8 x 4 frames of 224 x 224; small ones for a rehearsal."""
    return ClipSpec(segments=4, frames_per_segment=2, height=48, width=48, short_side=56) if settings.rehearsal else ClipSpec()


def network(ledger: Ledger) -> None:
    """Make the network, count its arithmetic, and have PyTorch on the CPU, in float32, score the reference clips."""
    import torch

    from flowless.bench.lib.networks import lively_model
    from flowless.train.models.flops import count

    settings = ledger.settings
    spec = spec_of(settings)
    # Half of the width and no less: with fewer channels one clip's scores hang on what INT8 saturates on a processor without VNNI.
    name, smaller = ("pan-lite-r18", {"width": 0.5, "blocks": 1}) if settings.rehearsal else ("pan-lite-r50", {})
    model = lively_model(name, classes=_CLASSES, spec=spec, **smaller)
    clips = reference_clips(spec)
    with torch.inference_mode():
        scores = np.concatenate([model(torch.from_numpy(clip[None])).numpy() for clip in clips])
    torch.save(model.state_dict(), settings.folder / "network.pt")
    np.savez(settings.folder / "network.npz", clips=clips, scores=scores)
    size = count(model)
    deviation = float(np.sqrt(np.mean((scores - scores.mean(axis=0)) ** 2)))
    ledger.fact(
        model=name,
        weights="random",
        spec=spec.to_dict(),
        classes=_CLASSES,
        parameters=size.parameters,
        macs_per_clip=size.macs,
        reference=f"PyTorch {torch.__version__} on the CPU, float32, {len(clips)} clips",
        score_spread=deviation,
    )
    # Last: its presence tells the other parts that all of it is there.
    write_json(settings.folder / "network-is.json", {"name": name, "smaller": smaller})


def reference_clips(spec: ClipSpec) -> np.ndarray:
    """Return uint8 clips `[6, N, m, H, W, 3]` that drift, each of its own contrast and brightness."""
    from flowless.bench.lib.networks import random_clips

    looks = np.array(_LOOKS, np.float32).reshape(-1, 2, 1, 1, 1, 1, 1)
    noise = random_clips(len(_LOOKS), spec, seed=1).astype(np.float32) - 127.5
    return np.clip(looks[:, 1] + noise * looks[:, 0], 0, 255).astype(np.uint8)


class _OnClips:
    """A calibration of INT8 on the very clips that are judged: what is checked is a library's arithmetic, not a choice of clips.

    On natural videos the scales become three times too large for these clips. Measured on PAN-Lite R50 in ONNX Runtime: 3 dB with
    those, on a CPU as on a GPU; 19 dB on six other clips of the kind; 34 dB on these.
    """

    method: Literal["max"] = "max"

    def __init__(self, clips: np.ndarray) -> None:
        self._clips = clips

    @contextmanager
    def stream(self, inputs: Sequence[str]) -> Iterator[_Reader]:
        """Give what ONNX Runtime's calibrators read: one clip at a time."""
        (name,) = inputs
        yield _Reader(self._clips, name)


class _Reader:
    def __init__(self, clips: np.ndarray, name: str) -> None:
        self._clips, self._name, self._next = clips, name, 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        self._next += 1
        return {self._name: self._clips[self._next - 1 : self._next]} if self._next <= len(self._clips) else None

    def get_first(self) -> dict[str, np.ndarray]:
        return {self._name: self._clips[:1]}

    def rewind(self) -> None:
        self._next = 0


def load_reference(settings: Settings) -> Reference:
    """Read what `network` wrote; raise NotHere where it could not."""
    _about(settings)
    with np.load(settings.folder / "network.npz") as stored:
        return Reference(clips=stored["clips"], scores=stored["scores"])


def load_network(settings: Settings) -> Any:
    """Build the network with the weights that `network` wrote, on the CPU, in evaluation mode; raise NotHere without them."""
    import torch

    from flowless.train.models import build_model

    about = _about(settings)
    model = build_model(about["name"], classes=_CLASSES, spec=spec_of(settings), **about["smaller"])
    model.load_state_dict(torch.load(settings.folder / "network.pt", weights_only=True))
    return model.eval()


def graphs(ledger: Ledger) -> None:
    """Write the network's ONNX graph, and what ModelOpt makes of it in the other precisions; none of it needs a GPU."""
    from flowless.export.graph.export_graph import export_onnx, read_graph

    settings = ledger.settings
    clips = load_reference(settings).clips
    model = load_network(settings)
    source = graph_path(settings, "fp32")
    shutil.rmtree(source.parent, ignore_errors=True)  # graphs of another key of the work folder
    source.parent.mkdir()
    started = time.monotonic()
    export_onnx(model, source, spec=spec_of(settings), labels=[f"class {place}" for place in range(_CLASSES)], name="gpu", versions={})
    ledger.row(precision="fp32", seconds=round(time.monotonic() - started, 1), mb=round(source.stat().st_size / 1e6, 1))
    for precision in PRECISIONS[1:]:
        if not ledger.in_time(precision):
            continue
        with ledger.trial(precision):
            from flowless.export.precision.precisions import with_precision

            started = time.monotonic()
            calibration = _OnClips(clips) if precision == "int8" else None
            proto = with_precision(read_graph(source), precision, clips=clips[2:3], calibration=calibration)
            path = graph_path(settings, precision)
            with whole_file(path) as draft:
                draft.write_bytes(proto.SerializeToString())
            ledger.row(precision=precision, seconds=round(time.monotonic() - started, 1), mb=round(path.stat().st_size / 1e6, 1))


def graph_path(settings: Settings, precision: str) -> Path:
    """Return where the graph of a precision lies, if it could be made."""
    return settings.folder / "graphs" / f"{precision}.onnx"


def read_precise(settings: Settings, precision: str, *, target: str) -> Any:
    """Return the graph that a target is built from; raise NotHere where `graphs` could not make it."""
    from flowless.export.graph.export_graph import read_graph

    path = graph_path(settings, precision)
    if not path.is_file():
        raise NotHere(f"the part graphs did not make a graph in {precision}; see there")
    proto = read_graph(path)
    if precision != "int8":
        return proto
    from flowless.export.targets.target_graph import graph_for

    return graph_for(proto, target=target, precision=precision)  # type: ignore[arg-type]


def compare_scores(scores: np.ndarray, expected: np.ndarray, *, precision: str, device: str) -> dict[str, Any]:
    """Compare an engine's scores with PyTorch's in float32, by the table of `export/verify/parity.py`.

    Returns:
        `max_abs_diff`, `spread`, `snr_db`, `passed`; `passed` is None, and `unjudged` says why, where the table has no such
        precision or the comparator is not installed.
    """
    difference = scores.astype(np.float64) - expected
    spread = float(np.sqrt(np.mean((expected - expected.mean(axis=0)) ** 2)))
    with np.errstate(divide="ignore"):
        snr = float(20 * np.log10(spread / np.sqrt(np.mean(difference**2))))
    found = {"max_abs_diff": float(np.abs(difference).max()), "spread": spread, "snr_db": round(snr, 1) if np.isfinite(snr) else None}
    try:
        from flowless.export.verify import parity

        if (precision, device) not in parity.TOLERANCE:
            return {**found, "passed": None, "unjudged": f"no tolerance is stated for {precision}"}
        result = parity.compare(scores, expected, precision=precision, device=device)
    except ModuleNotFoundError as error:
        return {**found, "passed": None, "unjudged": f"not here: {error.name} is not installed"}
    return {**found, "least_snr_db": result.least_snr, "allowed": result.allowed, "passed": result.passed}


def _about(settings: Settings) -> dict[str, Any]:
    path = settings.folder / "network-is.json"
    if not path.is_file():
        raise NotHere("the part network did not make the network; see there")
    return json.loads(path.read_text(encoding="utf-8"))
