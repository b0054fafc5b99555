"""The parts of the GPU suite: what runs each, how long it may take, what it needs, and which are chosen."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flowless.errors import FlowlessError


@dataclass(frozen=True)
class Part:
    """One part of the suite."""

    function: str
    """`module:function` in this package, called with a `Results`."""
    seconds: float
    what: str
    needs: tuple[str, ...] = ()
    """Parts whose files it uses."""
    kept: bool = False
    """Whether a work folder keeps what it makes for later commands."""


_ENGINE = ("network", "graphs")
#: In the order in which they run unless `--parts` names another: correctness first, then what is fast, then what takes long.
PARTS: dict[str, Part] = {
    "machine": Part("device:machine", 60, "card, driver, CUDA, clocks, versions"),
    "peak": Part("device:peak", 60, "the fastest matrix products in bf16, fp16, int8, tf32, fp32; memory", kept=True),
    "persistence": Part("pa_op:persistence", 120, "the PA op's bodies against float64, forward and backward"),
    "kernels": Part("pa_op:kernels", 90, "the TensorRT plugin's CUDA kernel against float64, without TensorRT"),
    "pa-forms": Part("pa_op:pa_forms", 90, "speed and memory of the PA op by body, layout and type, beside plain forms and the plugin"),
    "sanitizer": Part("pa_op:sanitizer", 60, "the plugin's kernel under compute-sanitizer"),
    "videos": Part("video:videos", 120, "videos to decode, generated", kept=True),
    "decode": Part("video:decode", 120, "DALI's decoder frame for frame against PyAV, every codec", ("videos",)),
    "network": Part("engines:network", 150, "the network that the engines run, exported to a bundle", kept=True),
    "eager": Part("networks:eager", 90, "PyTorch eager", ("network",)),
    "graphs": Part("engines:graphs", 200, "the network's ONNX graph in each precision", ("network",), kept=True),
    "onnxruntime": Part("engines:onnxruntime", 150, "ONNX Runtime's CUDA provider", _ENGINE),
    "models": Part("networks:models", 150, "every family of networks, eager and as a CUDA graph"),
    "train-step": Part("networks:train_step", 150, "a training step in bf16, PA by either body"),
    "shapes": Part("networks:shapes", 120, "Moving Shapes trained by its recipe: accuracy and time"),
    "files": Part("video:files", 90, "from video file to scores, PyAV and DALI", ("videos",)),
    "end-to-end": Part("end_to_end:end_to_end", 90, "predict_many(decode='gpu') beside decoder and engine alone", ("videos", "network")),
    "compiled": Part("networks:compiled", 240, "torch.compile", ("network",)),
    "tensorrt": Part("engines:tensorrt", 300, "TensorRT", _ENGINE),
    "plugin": Part("engines:plugin", 180, "TensorRT with the PA op's C++ plugin", _ENGINE),
    "tensorrt-rtx": Part("engines:tensorrt_rtx", 120, "TensorRT-RTX, which a data-centre GPU may refuse", _ENGINE),
}


def chosen_parts(text: str | None) -> dict[str, float]:
    """Return the parts to run, in order, with the seconds that each may take.

    `text` holds names, some with a limit (`peak,persistence=110`); None: every part. What they need comes before them, `machine` first.
    """
    items = PARTS if text is None else [item.strip() for item in text.split(",") if item.strip()]
    limits = {name: limit for name, _, limit in (item.partition("=") for item in items)}
    unknown = sorted(set(limits) - set(PARTS))
    if unknown or not limits:
        raise FlowlessError(f"--parts is {text!r}: {', '.join(unknown) or 'nothing'} is no part; there are {', '.join(PARTS)}.")
    chosen: dict[str, float] = {}
    for name in ("machine", *limits):
        for part in (*PARTS[name].needs, name):
            chosen.setdefault(part, _seconds(part, limits[part]) if limits.get(part) else PARTS[part].seconds)
    return chosen


def _seconds(name: str, text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not float(text):
        raise FlowlessError(f"--parts gives {name} {text!r}; it must be a number of seconds above 0, such as {name}=60.")
    return float(text)
