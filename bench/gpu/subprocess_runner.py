"""One part of the GPU suite in a process of its own: what it raises, a crash and a hang cost that part alone.

    python -m flowless.bench.gpu.subprocess_runner MODULE:FUNCTION SETTINGS.json LEDGER.json SECONDS

is the child's side. The function is called with a `Ledger`, whose file holds what was measured before the end, whichever it is.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowless.bench.gpu.ledger import Ledger, Settings, error_text, missing
from flowless.files import write_json

#: Share of a part's seconds after which it begins nothing new, so that it ends by itself.
_SOFT = 0.8
_EMPTY: dict[str, Any] = {"facts": {}, "rows": [], "checks": [], "left_out": {}, "errors": {}}


def run_part(
    name: str, function: str, *, settings: Settings, seconds: float, scratch: Path | None = None, held: Sequence[int] = ()
) -> dict[str, Any]:
    """Run one part.

    Args:
        name: Its name; its files in `scratch` are called by it.
        function: `module:function`, called with a `Ledger`.
        settings: Its settings.
        seconds: It is stopped after these, with all processes that it started.
        scratch: Folder of its settings, ledger and log, of one command alone; None: the settings' folder.
        held: Descriptors that it inherits: locks that are to last as long as it does.

    Returns:
        Its document: `status` (`ran`, `not here: ...` or `failed: ...`), `seconds`, `facts`, `rows`, `checks`, `left_out`, `errors`;
        and what the process `said` last, where it did not run to its end.
    """
    folder = scratch or settings.folder
    told_of, ledger, log = (folder / f"{name}{suffix}" for suffix in (".settings.json", ".json", ".log"))
    write_json(told_of, settings.to_dict())
    ledger.unlink(missing_ok=True)
    command = [sys.executable, "-m", "flowless.bench.gpu.subprocess_runner", function, str(told_of), str(ledger), str(seconds)]
    started, late = time.monotonic(), False
    with log.open("wb") as stream:
        # A session of its own, so that a compiler's processes are stopped with the part.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=held
        )
        try:
            child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            _stop(child)
    document = _read(ledger)
    at = document.pop("at", None)
    if late:
        document["status"] = f"failed: stopped after {seconds:g} s" + (f", at {at}" if at else "")
    elif not document.get("status"):
        document["status"] = f"failed: {_ending(child.returncode)}" + (f", at {at}" if at else "")
    if not document["status"].startswith("ran") and (said := _last_words(log)):
        document["said"] = said.replace(str(folder), "WORK").replace(str(settings.folder), "WORK").replace(sys.prefix, "PYTHON")
    return {"status": document.pop("status"), "seconds": round(time.monotonic() - started, 1), **_EMPTY, **document}


def failures(name: str, part: dict[str, Any]) -> list[str]:
    """Return what went wrong in a part's document, one line each."""
    wrong = [f"{name}: {part['status']}"] if part["status"].startswith("failed") else []
    wrong += [f"{name}: {what}: {message}" for what, message in part["errors"].items()]
    return wrong + [f"{name}: {check['check']}: not passed" for check in part["checks"] if check["passed"] is False]


def main(words: Sequence[str]) -> int:
    """Run a part in this process, for `run_part`."""
    name, settings, path, seconds = words
    deadline = time.monotonic() + _SOFT * float(seconds)
    told_of = Settings(**json.loads(Path(settings).read_text(encoding="utf-8")))
    ledger = Ledger(path=Path(path), settings=told_of, deadline=deadline)
    module, _, function = name.partition(":")
    try:
        getattr(importlib.import_module(module), function)(ledger)
        ledger.status = "ran"
    except Exception as error:  # whatever a part raises belongs into its document
        ledger.status = missing(error)
        if not ledger.status:
            traceback.print_exc()
            ledger.status = f"failed: {error_text(error)}"
    ledger.write()
    return 0


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End what is left of a part: the process and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _read(ledger: Path) -> dict[str, Any]:
    return json.loads(ledger.read_text(encoding="utf-8")) if ledger.is_file() else {"status": None}


def _ending(code: int) -> str:
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-6:])[-800:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
