"""The parts of the GPU suite: what runs each, how long it may take, what it needs, and which are asked for."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass

from flowless.bench.gpu.ledger import Settings
from flowless.errors import FlowlessError


@dataclass(frozen=True)
class Part:
    """One part of the suite."""

    function: str
    """`module:function` in this package, called with a `Ledger`."""
    seconds: float
    """It is stopped after these."""
    quick_seconds: float
    """The same with `--quick`."""
    what: str
    """What it measures, in a line."""
    needs: tuple[str, ...] = ()
    """Parts whose files it uses."""
    kept: bool = False
    """What it makes depends on the settings, the code and the libraries alone, so a work folder keeps it (`work.py`)."""
    library: str = ""
    """Module that it does nothing without: where it is missing, its process, which would load PyTorch first, is not begun."""
    gpu_only: bool = False
    """It has no rehearsal on the CPU."""

    def missing(self, settings: Settings) -> str:
        """Return what this machine lacks for the part to be begun, as far as that is known without trying; "" for nothing."""
        if self.gpu_only and settings.rehearsal:
            return "kernels compiled for a GPU have no rehearsal on the CPU"
        if self.library and importlib.util.find_spec(self.library) is None:
            return f"{self.library} is not installed"
        return ""


_ENGINE = ("network", "graphs")

#: In the order in which they run unless `--parts` names another: what is right first, then the fast and the long.
PARTS: dict[str, Part] = {
    "machine": Part("machine:machine", 60, 60, "card, driver, CUDA, clocks, versions, which libraries and tools are here"),
    "peak": Part("machine:peak", 60, 30, "matrix products at most, in bf16, fp16, int8, tf32, fp32; memory"),
    "persistence": Part("persistence:persistence", 120, 45, "the PA op's bodies: against float64, speed, memory, forward and backward"),
    "kernels": Part(
        "kernels:kernels", 90, 60, "the plugin's CUDA kernel and the ahead-of-time Triton kernel, without TensorRT", gpu_only=True
    ),
    "pa-forms": Part("pa_forms:pa_forms", 90, 60, "the PA op by layout and type beside the compiled plain form; the weight's gradient"),
    "sanitizer": Part(
        "sanitizer:sanitizer", 60, 60, "the plugin's kernel under compute-sanitizer, and what share of the card it uses", gpu_only=True
    ),
    "videos": Part("videos:videos", 120, 60, "videos to decode, made here", kept=True, library="av"),
    "decode": Part(
        "decode:decode", 120, 60, "DALI's decoder frame for frame against PyAV; the loader's clips per second", ("videos",), library="av"
    ),
    "network": Part("network:network", 150, 60, "the network that the engines run, and PyTorch's scores in float32", kept=True),
    "eager": Part("pytorch:eager", 90, 45, "PyTorch eager", ("network",)),
    "graphs": Part("network:graphs", 200, 90, "the network's ONNX graph in each precision", ("network",), kept=True),
    "onnxruntime": Part("cuda_provider:onnxruntime_part", 150, 60, "ONNX Runtime's CUDA provider", _ENGINE),
    "models": Part("models:models", 150, 60, "every family of networks, eager and as a CUDA graph"),
    "train-step": Part("train_step:train_step", 150, 60, "a step of training: bf16, PA by either body, TF32, DDP, torch.compile"),
    "shapes": Part("shapes:shapes", 120, 60, "Moving Shapes learnt from frames in memory: accuracy and time"),
    "files": Part("video_scores:video_scores", 90, 45, "from video file to scores, PyAV and DALI", ("videos",), library="av"),
    "compiled": Part("pytorch:compiled", 240, 90, "torch.compile", ("network",)),
    "tensorrt": Part("tensorrt_engines:tensorrt_part", 300, 120, "TensorRT", _ENGINE, library="tensorrt"),
    "plugin": Part("tensorrt_engines:plugin_part", 180, 90, "TensorRT with the PA op's C++ plugin", _ENGINE, library="tensorrt"),
    "tensorrt-rtx": Part(
        "tensorrt_engines:tensorrt_rtx_part", 120, 60, "TensorRT-RTX, which a data-centre GPU may refuse", _ENGINE, library="tensorrt_rtx"
    ),
}


def chosen_parts(words: str | None, *, quick: bool = False) -> dict[str, float]:
    """Return the parts to run, in order, with the seconds that each may take.

    Args:
        words: Names with commas between them, a name's own limit behind it (`peak,persistence=110`), run in this order; what
            they need comes before them, and `machine` before all. None: every part.
        quick: Take the limits of `--quick` where none is given.

    Raises:
        FlowlessError: There is no such part, or a limit is no number of seconds.
    """
    asked: dict[str, str] = dict.fromkeys(PARTS, "")
    if words is not None:
        asked = {name.strip(): limit for name, _, limit in (word.partition("=") for word in words.split(",") if word.strip())}
    unknown = sorted(set(asked) - set(PARTS))
    if unknown or not asked:
        raise FlowlessError(f"--parts is {words!r}: {', '.join(unknown) or 'nothing'} is no part; there are {', '.join(PARTS)}.")
    chosen: dict[str, float] = {}
    for name in ("machine", *asked):
        for part in (*PARTS[name].needs, name):
            default = PARTS[part].quick_seconds if quick else PARTS[part].seconds
            chosen.setdefault(part, _seconds(part, asked[part]) if asked.get(part) else default)
    return chosen


def _seconds(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise FlowlessError(f"--parts gives {name} {text!r}; it must be a number of seconds above 0, such as {name}=60.")
    return value
