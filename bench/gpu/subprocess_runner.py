"""One part of the GPU suite in a process of its own, so that an exception, a crash or a hang costs that part alone.

The child's command line: `python -m flowless.bench.gpu.subprocess_runner PART MODULE:FUNCTION SETTINGS RESULTS.json SECONDS`, with the
settings as JSON. The results' file holds what was measured before the child ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowless.bench.gpu.parts import PARTS
from flowless.bench.gpu.results import Results, Settings, empty, reason_of
from flowless.files import write_json
from flowless.machine import MEASURED_LIBRARIES, installed_versions

#: Share of a part's seconds after which it begins nothing new, so that it ends by itself.
_SOFT = 0.8


def run_part(name: str, *, settings: Settings, seconds: float, scratch: Path, function: str = "") -> dict[str, Any]:
    """Run one part for so many seconds at most, then stop it with all processes that it started.

    Its files lie in `scratch`; `function`, as `module:function`, runs in place of its own. Return its document, as `empty` has it,
    with `kept` where an earlier command made it, and the last output of its process, `said`, where it did not run to its end.
    """
    found, log = scratch / f"{name}.json", scratch / f"{name}.log"
    found.unlink(missing_ok=True)
    function = function or f"flowless.bench.gpu.{PARTS[name].function}"
    args = [name, function, json.dumps(asdict(settings), default=str), str(found), str(seconds)]
    started, late = time.monotonic(), False
    with log.open("wb") as stream:
        # A session of its own, so that a compiler's processes are stopped with the part.
        command = [sys.executable, "-m", "flowless.bench.gpu.subprocess_runner", *args]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True)
        try:
            child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    document = json.loads(found.read_text(encoding="utf-8")) if found.is_file() else empty(None)
    at = document.pop("at", None)
    if not document["status"]:
        code = child.returncode
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        document["status"] = f"failed: {f'stopped after {seconds:g} s' if late else how}" + (f", at {at}" if at else "")
    if document["status"] != "ran":
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        document["said"] = " | ".join(line.strip() for line in lines if line.strip())[-800:].replace(str(settings.folder), "WORK")
    return document | {"seconds": round(time.monotonic() - started, 1)}


def failures(name: str, part: dict[str, Any]) -> list[str]:
    """Return what failed in a part's document, one line each."""
    failed = [f"{name}: {part['status']}"] if part["status"].startswith("failed") else []
    failed += [f"{name}: {what}: {message}" for what, message in part["errors"].items()]
    return failed + [f"{name}: {check['check']}: not passed" for check in part["checks"] if check["passed"] is False]


def main(args: Sequence[str]) -> int:
    """Run a part in this process, for `run_part`, unless the work folder keeps its results from an earlier command."""
    name, function, given, found, seconds = args
    settings = Settings(**(values := json.loads(given)) | {"folder": Path(values["folder"])})
    os.environ.setdefault("FLOWLESS_CACHE", str(settings.folder / "cache"))  # graphs for later commands
    results = Results(path=Path(found), settings=settings, deadline=time.monotonic() + _SOFT * float(seconds))
    newest = max(path.stat().st_mtime for path in Path(__file__).resolve().parents[2].glob("[bept]*/**/*.py"))
    note, key = settings.folder / f"{name}.made.json", [settings.device, settings.quick, newest, installed_versions(MEASURED_LIBRARIES)]
    kept = name in PARTS and PARTS[name].kept
    if kept:
        results.write(status="not run: another command was making it")  # where this process is stopped while it waits
        lock = (settings.folder / f"{name}.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends
        results.write(status=None)
    made = json.loads(note.read_text(encoding="utf-8")) if kept and note.is_file() else {}
    if made.get("key") == key:
        write_json(found, {**made["part"], "kept": True})
        return 0
    module, _, called = function.partition(":")
    try:
        getattr(importlib.import_module(module), called)(results)
        results.write(status="ran")
    except Exception as error:  # whatever a part raises belongs into its document
        traceback.print_exc()
        results.write(status=reason_of(error, "failed: "))
    part = results.document
    if kept and part["status"] == "ran" and not part["errors"] and not any(why.startswith("not run") for why in part["left_out"].values()):
        write_json(note, {"key": key, "part": json.loads(results.path.read_text(encoding="utf-8"))})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
