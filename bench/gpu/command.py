"""Everything that needs a GPU, in one command that always yields a file.

    flowless bench gpu                       # into runs/bench/gpu-CARD.json
    flowless bench gpu --out bench/results   # into bench/results/gpu-CARD.json, if a GPU ran
    flowless bench gpu --quick               # a smoke run, in a minute or so
    flowless bench gpu --parts persistence,peak
    flowless bench gpu --device cpu          # a rehearsal of the same code on the CPU, with small sizes

Each part runs in a process of its own, with a time limit: what it raises, a crash or a hang costs that part alone, and what it
had measured until then is kept. Where a library or the GPU is missing, the part's status is `not here: REASON`. The exit code is 3
where a check failed or a part did, otherwise 0, also where there was nothing to run.

On a machine that flowless is not installed on, a folder that holds a link named `flowless` to the checkout is enough:

    ln -s CHECKOUT FOLDER/flowless && PYTHONPATH=FOLDER python -m flowless.bench.gpu.command --quick

Nothing beyond Python's own library and NumPy is imported before a part needs it, and the parts import by themselves: `peak` and
`persistence` need PyTorch (and Triton) alone, `kernels` also nvcc and tyro, `network`, `eager` and `compiled` timm, `graphs` and
`onnxruntime` onnx and onnxscript (and ModelOpt for half and integer precisions), the others what they are called by. Scores are
judged where PyAV and Polygraphy are installed, which `export/parity.py` needs; without them they are written down unjudged.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowless.bench.gpu.guard import failures, run_part
from flowless.bench.gpu.ledger import Settings
from flowless.bench.gpu.shares import add_shares
from flowless.errors import FlowlessError
from flowless.files import write_json
from flowless.waiting import let_waiting_threads_sleep

#: Where results go that are kept with the code: only those of a GPU.
RESULTS = Path("bench/results")
DEFAULT_OUT = Path("runs/bench")


@dataclass(frozen=True)
class Part:
    """One part: what runs it, the seconds that it may take (and with `quick`), and what it measures."""

    function: str
    seconds: float
    quick_seconds: float
    what: str


#: In the order in which they run: later parts use what `network` and `graphs` wrote.
PARTS: dict[str, Part] = {
    "machine": Part("machine:machine", 60, 60, "card, driver, CUDA, clocks, versions"),
    "peak": Part("machine:peak", 60, 30, "matrix products at most, in bf16, fp16, int8, tf32, fp32; memory"),
    "persistence": Part("persistence:persistence", 120, 45, "the PA op's bodies: against float64, speed, memory, forward and backward"),
    "kernels": Part("kernels:kernels", 90, 60, "the plugin's CUDA kernel and the ahead-of-time Triton kernel, without TensorRT"),
    "decode": Part("decode:decode", 120, 60, "DALI's decoder frame for frame against PyAV; the loader's clips per second"),
    "network": Part("network:network", 90, 60, "the network that the engines run, and PyTorch's scores in float32"),
    "eager": Part("pytorch:eager", 90, 45, "PyTorch eager"),
    "compiled": Part("pytorch:compiled", 150, 90, "torch.compile"),
    "graphs": Part("network:graphs", 150, 90, "the network's ONNX graph in each precision"),
    "onnxruntime": Part("cuda_provider:onnxruntime_part", 120, 60, "ONNX Runtime's CUDA provider"),
    "tensorrt": Part("tensorrt_engines:tensorrt_part", 300, 120, "TensorRT"),
    "plugin": Part("tensorrt_engines:plugin_part", 180, 90, "TensorRT with the PA op's C++ plugin"),
    "quick-plugin": Part("tensorrt_engines:quick_plugin_part", 180, 90, "TensorRT with the PA op's Python plugin"),
    "tensorrt-rtx": Part("tensorrt_engines:tensorrt_rtx_part", 120, 60, "TensorRT-RTX, which a data-centre GPU may refuse"),
}
#: Part -> the parts whose files it uses.
_NEEDS: dict[str, tuple[str, ...]] = dict.fromkeys(("eager", "compiled", "graphs"), ("network",))
_NEEDS |= dict.fromkeys(("onnxruntime", "tensorrt", "plugin", "quick-plugin", "tensorrt-rtx"), ("network", "graphs"))


def main(words: Sequence[str] | None = None) -> int:
    """`flowless bench gpu`; return 0, or 3 where a check or a part failed."""
    asked = _parser().parse_args(sys.argv[1:] if words is None else list(words))
    chosen = chosen_parts(asked.parts)
    with tempfile.TemporaryDirectory(prefix="flowless-gpu-") as work:
        settings = Settings(device=asked.device, quick=asked.quick, work=work, videos=asked.videos or os.environ.get("FLOWLESS_CLIPS"))
        document, out = {}, asked.out
        for document in measured(settings, chosen):
            card = document["gpu"] if settings.device == "cuda" else None
            out = place(asked.out, card=card, quick=asked.quick, partial=asked.parts is not None, device=asked.device)
            write_json(out, document)  # after every part: a machine that is lent may be taken back at any time
    if asked.json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    _tell(document, out)
    return 3 if document["failed"] else 0


def measured(settings: Settings, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run parts one after the other and yield the document after each.

    Args:
        settings: What they are told; its folder must exist.
        names: Parts, in the order of `PARTS`.

    Yields:
        `benchmark`, `environment`, `gpu` (the card's name or None), `settings`, `parts` by name, and `failed`: what went wrong.
    """
    parts: dict[str, dict[str, Any]] = {}
    reason = ""
    for name, part in PARTS.items():
        if name not in names:
            continue
        if reason:
            parts[name] = not_here(reason)
        else:
            _say(f"{name}: {part.what} …")
            seconds = part.quick_seconds if settings.quick else part.seconds
            parts[name] = run_part(name, f"flowless.bench.gpu.{part.function}", settings=settings, seconds=seconds)
            _say(f"{name}: {parts[name]['status']} ({parts[name]['seconds']:g} s)")
        if name == "machine" and settings.device == "cuda":
            facts = parts[name]["facts"]
            reason = facts["no_gpu"] if facts.get("gpu", 0) is None else ""
        yield _document(settings, names, parts)


def _document(settings: Settings, names: Sequence[str], parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    add_shares(parts)
    facts = parts["machine"]["facts"]
    return {
        "benchmark": "gpu",
        "environment": facts.get("environment", {}),
        "gpu": (facts.get("gpu") or {}).get("name"),
        "settings": {"device": settings.device, "quick": settings.quick, "batches": list(settings.batches), "parts": list(names)},
        "parts": parts,
        "failed": [line for name, part in parts.items() for line in failures(name, part)],
    }


def chosen_parts(words: str | None) -> list[str]:
    """Return the parts of a list with commas, `machine` and what they build upon with them; all without one.

    Raises:
        FlowlessError: There is no such part.
    """
    if words is None:
        return list(PARTS)
    wanted = {word.strip() for word in words.split(",") if word.strip()}
    unknown = sorted(wanted - set(PARTS))
    if unknown or not wanted:
        raise FlowlessError(f"--parts is {words!r}: {', '.join(unknown) or 'nothing'} is no part; there are {', '.join(PARTS)}.")
    wanted |= {"machine"} | {need for name in wanted for need in _NEEDS.get(name, ())}
    return [name for name in PARTS if name in wanted]


def not_here(reason: str) -> dict[str, Any]:
    """Return the document of a part that was not begun."""
    return {"status": f"not here: {reason}", "seconds": 0.0, "facts": {}, "rows": [], "checks": [], "left_out": {}, "errors": {}}


def slug(card: str | None) -> str:
    """Return a card's name for a file's: `NVIDIA H100 80GB HBM3` is `h100`, `NVIDIA GeForce RTX 4090` is `rtx-4090`."""
    words = re.sub(r"[^a-z0-9]+", " ", (card or "none").lower()).split()
    maker = {"nvidia", "geforce", "quadro", "tesla", "graphics", "device", "gpu"}
    sizes = re.compile(r"\d+gb|hbm\d\w*|pcie|sxm\d*|nvl")
    kept = [word for word in words if word not in maker and not sizes.fullmatch(word)]
    return "-".join(kept) or "unknown"


def place(out: Path, *, card: str | None, quick: bool, partial: bool, device: str) -> Path:
    """Return the file to write.

    A folder gets `gpu-CARD.json`; a quick run, one of some parts and a rehearsal do not take that name, which is the full run's.
    Where no GPU ran, nothing is written into `RESULTS`: the file goes to `DEFAULT_OUT`.
    """
    kind = "".join(word for word, wanted in (("-quick", quick), ("-parts", partial)) if wanted)
    name = f"gpu-{slug(card) if device == 'cuda' else 'rehearsal'}{kind}.json"
    file = out if out.suffix == ".json" else out / name
    kept = Path(__file__).resolve().parents[1] / "results"
    within = file.resolve().is_relative_to(RESULTS.resolve()) or file.resolve().is_relative_to(kept)
    return DEFAULT_OUT / name if card is None and within else file


def _tell(document: dict[str, Any], out: Path) -> None:
    for line in document["failed"]:
        _say(f"FAILED {line}")
    parts = document["parts"].values()
    ran, away = (sum(part["status"].startswith(word) for part in parts) for word in ("ran", "not here"))
    checks = [check for part in parts for check in part["checks"]]
    passed = sum(check["passed"] is True for check in checks)
    where = document["gpu"] or "no GPU"
    _say(f"{where}: {ran} parts ran, {away} not here, {passed} of {len(checks)} checks passed, {len(document['failed'])} failures: {out}")


def _say(text: str) -> None:
    # Plainly: a machine that is lent may have no rich.
    print(f"flowless bench gpu: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<13} {part.what}" for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        prog="flowless bench gpu",
        description="Run everything that needs a GPU: checks and measurements, each part in a process of its own.",
        epilog=f"parts:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="file, or folder of gpu-CARD.json (default: %(default)s)")
    parser.add_argument("--parts", help="only these, with commas between them; without it all")
    parser.add_argument("--quick", action="store_true", help="few repetitions and batches: shows that everything runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses the same code with small sizes")
    parser.add_argument("--videos", help="folder of real videos to decode too (default: the environment variable FLOWLESS_CLIPS)")
    parser.add_argument("--json", action="store_true", help="print the document too")
    return parser


if __name__ == "__main__":
    let_waiting_threads_sleep()
    try:
        sys.exit(main())
    except FlowlessError as mistake:
        _say(str(mistake))
        sys.exit(mistake.exit_code)
