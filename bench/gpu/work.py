"""The work folder of the GPU suite: what is made once and kept, and who makes it.

A kept part has a note beside what it made: the settings, the code and the libraries that made it, and the part's document. A
part whose note is of the same is not made again. Two commands may share a folder, one of them making in the background what the
other needs: each part has a lock, which the system gives back if its holder dies.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowless.bench.gpu.ledger import Settings
from flowless.files import write_json
from flowless.machine import installed_versions

#: What writes weights, graphs and videos: another version of one, and they are made again.
_LIBRARIES = ("torch", "timm", "numpy", "onnx", "onnxscript", "nvidia-modelopt", "onnxruntime", "onnxruntime-gpu", "av")
_ASK_EVERY_SECONDS = 0.2


@dataclass(frozen=True)
class Work:
    """A work folder, as one command sees it."""

    settings: Settings

    @property
    def key(self) -> dict[str, Any]:
        """What decides everything that is kept."""
        return {
            "device": self.settings.device,
            "quick": self.settings.quick,
            "code": code_hash(),
            "libraries": installed_versions(_LIBRARIES),
        }

    def kept(self, name: str) -> dict[str, Any] | None:
        """Return the document of a part that was made before with the same key; None where there is none."""
        try:
            note = json.loads(self._note(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return note["part"] if note.get("key") == self.key else None

    def keep(self, name: str, part: dict[str, Any]) -> None:
        """Note that a part is made, if it is: all of it, without an error, nothing left out for want of time."""
        late = any(reason.startswith("not run") for reason in part["left_out"].values())
        if part["status"] == "ran" and not part["errors"] and not late:
            write_json(self._note(name), {"key": self.key, "part": part})

    @contextmanager
    def turn(self, name: str, *, seconds: float) -> Iterator[int | None]:
        """Wait until no other command makes this part, then give the lock's descriptor; None if that takes longer than `seconds`.

        A process that is started with the descriptor holds the lock too, until it ends.
        """
        end = time.monotonic() + seconds
        descriptor = os.open(self.settings.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while not _locked(descriptor):
                if time.monotonic() >= end:
                    yield None
                    return
                time.sleep(_ASK_EVERY_SECONDS)
            yield descriptor
        finally:
            os.close(descriptor)

    def _note(self, name: str) -> Path:
        return self.settings.folder / f"{name}.made.json"


def _locked(descriptor: int) -> bool:
    try:
        import fcntl
    except ModuleNotFoundError:
        return True  # Windows has no such locks: two commands would make it twice, each whole
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@functools.cache
def code_hash() -> str:
    """Return a hash of this package's modules: another version of the code makes anew."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    stages = ("bench", "engines", "export", "pipeline", "train")
    for path in sorted([*root.glob("*.py"), *(path for stage in stages for path in (root / stage).rglob("*.py"))]):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
