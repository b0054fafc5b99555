"""Everything that needs a GPU, in one command that always yields a file.

    flowless bench gpu                       # into runs/bench/gpu-CARD.json
    flowless bench gpu --out bench/results   # into bench/results/gpu-CARD.json, if a GPU ran
    flowless bench gpu --quick               # a smoke run, in a minute or so
    flowless bench gpu --parts persistence,peak
    flowless bench gpu --device cpu          # a rehearsal of the same code on the CPU, with small sizes

On a machine that is lent for minutes, several short commands share what they need and end in time:

    flowless bench gpu --work WORK --parts videos,network,graphs &         # needs no GPU: in the background
    flowless bench gpu --work WORK --until 200 --parts peak=40,persistence=110,kernels=80 --out one.json

Each part runs in a process of its own, with a time limit: what it raises, a crash or a hang costs that part alone, and what it
had measured until then is kept. Where a library or the GPU is missing, the part's status is `not here: REASON`; where there is no
time left, `not run: REASON`. The exit code is 3 where a check failed or a part did, otherwise 0, also where there was nothing to run.

On a machine that flowless is not installed on, a folder that holds a link named `flowless` to the checkout is enough:

    ln -s CHECKOUT FOLDER/flowless && PYTHONPATH=FOLDER python -m flowless.bench.gpu.command --quick

Nothing beyond Python's own library and NumPy is imported before a part needs it, and the parts import by themselves: `peak`,
`persistence` and `pa-forms` need PyTorch (and Triton) alone, `kernels` and `sanitizer` also nvcc, `network`, `eager`, `compiled`,
`models`, `train-step` and `shapes` timm, `graphs` and `onnxruntime` onnx and onnxscript (and ModelOpt for half and integer
precisions), `videos`, `decode` and `files` PyAV, the others what they are called by. Scores are judged where Polygraphy is
installed, which `export/verify/parity.py` needs; without it they are written down unjudged.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowless.bench.gpu.ledger import Settings
from flowless.bench.gpu.parts import PARTS, chosen_parts
from flowless.bench.gpu.shares import add_shares
from flowless.bench.gpu.subprocess_runner import failures, run_part
from flowless.bench.gpu.work import Work
from flowless.errors import FlowlessError
from flowless.files import write_json
from flowless.thread_waiting import let_waiting_threads_sleep

#: Where results go that are kept with the code: only those of a GPU.
RESULTS = Path("bench/results")
DEFAULT_OUT = Path("runs/bench")


#: A part that is left less than this is not begun: it could not even import its libraries.
_LEAST_SECONDS = 5.0


def main(words: Sequence[str] | None = None) -> int:
    """`flowless bench gpu`; return 0, or 3 where a check or a part failed."""
    end = time.monotonic()
    asked = _parser().parse_args(sys.argv[1:] if words is None else list(words))
    end += asked.until
    chosen = chosen_parts(asked.parts, quick=asked.quick)
    with tempfile.TemporaryDirectory(prefix="flowless-gpu-") as scratch:
        work = asked.work or Path(scratch)
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlowlessError(f"--work {work}: {error.strerror}. Name a folder that can be written.") from error
        settings = Settings(
            device=asked.device, quick=asked.quick, work=str(work.resolve()), videos=asked.videos or os.environ.get("FLOWLESS_CLIPS")
        )
        document, out = {}, asked.out
        for document in measured(settings, chosen, end=end, scratch=Path(scratch)):
            card = document["gpu"] if settings.device == "cuda" else None
            out = place(asked.out, card=card, quick=asked.quick, partial=asked.parts is not None, device=asked.device)
            write_json(out, document)  # after every part: a machine that is lent may be taken back at any time
    if asked.json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    _tell(document, out)
    return 3 if document["failed"] else 0


def measured(settings: Settings, chosen: Mapping[str, float], *, end: float, scratch: Path) -> Iterator[dict[str, Any]]:
    """Run parts one after the other and yield the document after each.

    Args:
        settings: Settings of every part; its folder must exist.
        chosen: Parts in the order in which to run them, with the seconds that each may take; `machine` first.
        end: Time of `time.monotonic` at which all is to be over: what does not fit is not run, or for shorter.
        scratch: Folder of this command alone.

    Yields:
        `benchmark`, `environment`, `gpu` (the card's name or None), `settings`, `parts` by name, and `failed`: what went wrong.
    """
    parts: dict[str, dict[str, Any]] = {}
    work, reason = Work(settings), ""
    for name, seconds in chosen.items():
        parts[name] = unrun(f"not here: {reason}") if reason else _step(name, work, seconds, end=end, scratch=scratch)
        if name == "machine" and settings.device == "cuda":
            gpu = parts[name]["facts"].get("gpu", {})
            reason = parts[name]["facts"]["no_gpu"] if gpu is None else ""
            known = work.kept("peak")
            if "peak" not in chosen and known and gpu and known["facts"].get("card") == gpu["name"]:
                parts["peak"] = {**known, "kept": True}  # what shares are of, measured by an earlier command
        yield _document(settings, chosen, parts)


def _step(name: str, work: Work, seconds: float, *, end: float, scratch: Path) -> dict[str, Any]:
    """Run one part in the time that is left, and say how it ended."""
    left = end - time.monotonic()
    if left < _LEAST_SECONDS:
        return unrun("not run: no time left")
    if reason := PARTS[name].missing(work.settings):
        _report(name, part := unrun(f"not here: {reason}"))
        return part
    _say(f"{name}: {PARTS[name].what} …")
    run = _made_once if PARTS[name].kept else _run
    part = run(name, work, min(seconds, left), scratch)
    if left < seconds and part["status"].startswith("failed: stopped after"):
        # The command's end cut it short, which is no fault of the part.
        part["status"] = f"not run to its end: {part['status'].removeprefix('failed: ')}"
    if name == "peak":
        work.keep(name, part)
    _report(name, part)
    return part


def _run(name: str, work: Work, seconds: float, scratch: Path, held: Sequence[int] = ()) -> dict[str, Any]:
    function = f"flowless.bench.gpu.{PARTS[name].function}"
    return run_part(name, function, settings=work.settings, seconds=seconds, scratch=scratch, held=held)


def _made_once(name: str, work: Work, seconds: float, scratch: Path) -> dict[str, Any]:
    """Run a part whose files are kept, unless they are there; wait while another command makes them."""
    start = time.monotonic()
    with work.turn(name, seconds=seconds) as lock:
        waited = round(time.monotonic() - start, 1)
        if known := work.kept(name):
            return {**known, "kept": True, "waited_seconds": waited}
        if lock is None or seconds - waited < _LEAST_SECONDS:
            return unrun(f"not run: another command was making it for {waited:g} s, and this one had no more time")
        part = _run(name, work, seconds - waited, scratch, (lock,))
        work.keep(name, part)
        return part


def _document(settings: Settings, chosen: Mapping[str, float], parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    add_shares(parts)
    facts = parts["machine"]["facts"]
    return {
        "benchmark": "gpu",
        "environment": facts.get("environment", {}),
        "gpu": (facts.get("gpu") or {}).get("name"),
        "settings": {"device": settings.device, "quick": settings.quick, "batches": list(settings.batches), "parts": dict(chosen)},
        "parts": parts,
        "failed": [line for name, part in parts.items() for line in failures(name, part)],
    }


def unrun(status: str) -> dict[str, Any]:
    """Return the document of a part that was not begun."""
    return {"status": status, "seconds": 0.0, "facts": {}, "rows": [], "checks": [], "left_out": {}, "errors": {}}


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


def _report(name: str, part: dict[str, Any]) -> None:
    """Say how a part ended, and print its rows: where the file is lost with the machine, they are in what was printed."""
    kept = ", kept from before" if part.get("kept") else ""
    passed = sum(check["passed"] is True for check in part["checks"])
    _say(
        f"{name}: {part['status']} ({part['seconds']:g} s{kept}), {len(part['rows'])} rows, {passed} of {len(part['checks'])} checks passed"
    )
    for row in part["rows"] if not kept else ():
        _say("  " + " ".join(f"{key}={value}" for key, value in row.items() if value is not None)[:260])
    for what, why in part["left_out"].items():
        _say(f"  left out: {what}: {why}"[:400])


def _tell(document: dict[str, Any], out: Path) -> None:
    for line in document["failed"]:
        _say(f"FAILED {line}")
    parts = document["parts"].values()
    counts = {word: sum(part["status"].startswith(word) for part in parts) for word in ("ran", "not here", "not run")}
    checks = [check for part in parts for check in part["checks"]]
    passed = sum(check["passed"] is True for check in checks)
    summary = f"{counts['ran']} parts ran, {counts['not here']} not here, {counts['not run']} not run"
    _say(f"{document['gpu'] or 'no GPU'}: {summary}, {passed} of {len(checks)} checks passed, {len(document['failed'])} failures: {out}")


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
    parser.add_argument(
        "--parts",
        metavar="NAME[=SECONDS],...",
        help="only these, in this order, each with its own limit if it names one; without it all",
    )
    parser.add_argument("--work", type=Path, help="folder for network, graphs and videos, made once and kept for the next command")
    parser.add_argument(
        "--until", type=_seconds, default=math.inf, metavar="SECONDS", help="be done by then: what does not fit is written down as not run"
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions and batches: shows that everything runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses the same code with small sizes")
    parser.add_argument("--videos", help="folder of real videos to decode too (default: the environment variable FLOWLESS_CLIPS)")
    parser.add_argument("--json", action="store_true", help="print the document too")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise ValueError
    return value


if __name__ == "__main__":
    let_waiting_threads_sleep()
    try:
        sys.exit(main())
    except FlowlessError as mistake:
        _say(str(mistake))
        sys.exit(mistake.exit_code)
