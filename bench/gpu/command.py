"""Everything that needs a GPU, in one command that always writes a file: `flowless bench gpu`.

On a machine that is lent for minutes, several short commands share a work folder and end in time:

    flowless bench gpu --work WORK --parts videos,network,graphs &         # uses no GPU: in the background
    flowless bench gpu --work WORK --until 200 --parts peak=40,persistence=110,kernels=80 --out one.json
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowless.bench.gpu.parts import PARTS, chosen_parts
from flowless.bench.gpu.results import Settings, add_shares, empty
from flowless.bench.gpu.subprocess_runner import failures, run_part
from flowless.errors import FlowlessError
from flowless.files import write_json
from flowless.machine import environment, installed_versions
from flowless.thread_waiting import let_waiting_threads_sleep

RESULTS = Path(__file__).resolve().parents[1] / "results"
DEFAULT_OUT = Path("runs/bench")


def main(args: Sequence[str] | None = None) -> int:
    """`flowless bench gpu`; return 0, or 3 where a check or a part failed."""
    end = time.monotonic()
    parser = _parser()
    options = parser.parse_args(args)
    if not options.until > 0:
        parser.error(f"argument --until: {options.until} must be a number of seconds above 0")
    chosen = chosen_parts(options.parts)
    with tempfile.TemporaryDirectory(prefix="flowless-gpu-") as scratch:
        work = options.work or Path(scratch)
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlowlessError(f"--work {work}: {error.strerror}. Name a folder that can be written.") from error
        settings = Settings(device=options.device, quick=options.quick, folder=work.resolve())
        parts: dict[str, dict[str, Any]] = {}
        document: dict[str, Any] = {"benchmark": "gpu", "environment": environment(), "gpu": None, "parts": parts, "failed": []}
        document["environment"]["versions"] |= installed_versions(("triton", "onnxruntime", "nvidia-cudnn-cu13"))
        document["settings"] = {"device": settings.device, "quick": settings.quick, "batches": settings.batches, "parts": chosen}
        out = options.out
        for name, seconds in chosen.items():
            no_gpu = parts.get("machine", empty(""))["status"]
            missing = no_gpu.startswith("not here")
            parts[name] = empty(no_gpu) if missing else _run(name, settings, seconds, end=end + options.until, scratch=Path(scratch))
            document["gpu"] = parts["machine"]["facts"].get("gpu")
            add_shares(parts)
            document["failed"] = [line for name, part in parts.items() for line in failures(name, part)]
            out = place(options.out, card=document["gpu"], settings=settings, partial=options.parts is not None)
            write_json(out, document)  # after every part: a lent machine may be taken back at any time
    if options.json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    for line in document["failed"]:
        _say(f"FAILED {line}")
    ran = sum(part["status"] == "ran" for part in parts.values())
    _say(f"{document['gpu'] or 'no GPU'}: {ran} of {len(parts)} parts ran, {len(document['failed'])} failures: {out}")
    return 3 if document["failed"] else 0


def _run(name: str, settings: Settings, seconds: float, *, end: float, scratch: Path) -> dict[str, Any]:
    """Run one part in the time that is left, and print how it ended, with its rows: the file may be lost with the machine."""
    left = end - time.monotonic()
    if left < 5:  # it could not even import its libraries
        return empty("not run: no time left")
    part = run_part(name, settings=settings, seconds=min(seconds, left), scratch=scratch)
    if left < seconds and part["status"].startswith("failed: stopped after"):
        # The command's end cut it short, which is no failure of the part.
        part["status"] = f"not run to its end: {part['status'].removeprefix('failed: ')}"
    passed = [check["passed"] for check in part["checks"]]
    _say(f"{name}: {part['status']} ({part['seconds']:g} s), {passed.count(True)} of {len(passed)} checks passed")
    for row in part["rows"]:
        _say("  " + " ".join(f"{key}={value}" for key, value in row.items())[:260])
    for what, why in part["left_out"].items():
        _say(f"  left out: {what}: {why}"[:400])
    return part


def place(out: Path, *, card: str | None, settings: Settings, partial: bool) -> Path:
    """Return the file to write; in a folder its name says what ran, such as `gpu-h100.json`. Without a GPU it is not in `RESULTS`."""
    left_out = re.compile(r"nvidia|geforce|quadro|tesla|graphics|device|gpu|\d+gb|hbm\d\w*|pcie|sxm\d*|nvl")
    kept = [name for name in re.findall(r"[a-z0-9]+", (card or "none").lower()) if not left_out.fullmatch(name)]
    names = ["gpu", *(["rehearsal"] if settings.rehearsal else kept), *(["quick"] * settings.quick), *(["parts"] * partial)]
    name = f"{'-'.join(names)}.json"
    file = out if out.suffix == ".json" else out / name
    return DEFAULT_OUT / name if card is None and file.resolve().is_relative_to(RESULTS) else file


def _say(text: str) -> None:
    print(f"flowless bench gpu: {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flowless bench gpu",
        description="Run everything that needs a GPU, each part in a process of its own; exit with 3 where a check or a part failed.",
        epilog="parts:\n" + "\n".join(f"  {name:<13} {part.what}" for name, part in PARTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="file, or folder of gpu-CARD.json (default: %(default)s)")
    parser.add_argument("--parts", metavar="NAME[=SECONDS],...", help="only these, in this order, each with its limit; without it all")
    parser.add_argument("--work", type=Path, help="folder for network, graphs and videos, made once and kept for the next command")
    parser.add_argument("--until", type=float, default=math.inf, metavar="SECONDS", help="end by then: what does not fit is not run")
    parser.add_argument("--quick", action="store_true", help="few repetitions and batches: shows that everything runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses the same code with small sizes")
    parser.add_argument("--json", action="store_true", help="print the document too")
    return parser


if __name__ == "__main__":
    let_waiting_threads_sleep()
    try:
        sys.exit(main())
    except FlowlessError as mistake:
        _say(str(mistake))
        sys.exit(mistake.exit_code)
