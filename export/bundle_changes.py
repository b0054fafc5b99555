"""Changing an existing bundle: committing an engine or the rows of `--precision auto`, one process at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowless.engines.bundle.manifest import Artefact, Manifest, read_manifest
from flowless.files import whole_folder


@dataclass(frozen=True, kw_only=True)
class ArtefactDraft:
    """An engine's files while it is built and verified, in a temporary folder of the bundle."""

    bundle: Path
    folder: Path
    """Where the files are written, one folder below the bundle; the bundle itself where the engine is the bundle's graph."""
    prefix: str
    """What the folder will be called in the bundle, with a slash; empty where it is the bundle itself."""
    replaced: frozenset[str]
    """Folders of the engine with the same target and precision, which the manifest names until the new one is committed."""
    close: Callable[[], None]
    """Renames the temporary folder."""


class _NotCommitted(Exception):
    """The end of a draft's block, for the folder that is open in it."""


@contextlib.contextmanager
def open_draft(bundle: Path, target: str, precision: str, *, in_place: bool = False) -> Iterator[ArtefactDraft]:
    """Yield a draft of an engine; at the end of the block everything that `commit_artefact` has not committed is removed.

    One draft of a bundle is open at a time; others wait, which also keeps their timings apart.

    Args:
        bundle: The bundle.
        target: The engine's target.
        precision: Its precision.
        in_place: The engine has no files but the bundle's.
    """
    with _locked(bundle), contextlib.suppress(_NotCommitted), contextlib.ExitStack() as stack:
        replaced = _folders(read_manifest(bundle), target, precision)
        # Beside the folder that it replaces, which stays until the manifest names the new one.
        name = next(free for free in (f"{target}-{precision}", f"{target}-{precision}-2") if free not in replaced)
        folder = bundle if in_place else stack.enter_context(whole_folder(bundle / name))
        prefix = "" if in_place else f"{name}/"
        yield ArtefactDraft(bundle=bundle, folder=folder, prefix=prefix, replaced=frozenset(replaced), close=stack.close)
        raise _NotCommitted  # removes what is still open; after `close` nothing is


def commit_artefact(draft: ArtefactDraft, record: Artefact, *, calibration: dict[str, Any] | None = None) -> Artefact:
    """Write the engine's folder, then the manifest, then remove the folder that it replaces.

    A reader sees the old engine or the new one, never a part. Where anything fails, the bundle stays as it was.

    Args:
        draft: The engine's files.
        record: Its record, with files relative to the draft's folder.
        calibration: int8: the record of its calibration, for the manifest.

    Returns:
        The record, with files relative to the bundle.
    """
    bundle, kept = draft.bundle, replace(record, files=tuple(f"{draft.prefix}{file}" for file in record.files))
    try:
        draft.close()
        manifest = read_manifest(bundle).with_artefact(kept)
        if calibration is not None:
            manifest = replace(manifest, calibration=calibration)
        manifest.write()
    except BaseException:
        folder = draft.prefix.rstrip("/")
        if folder and folder not in _folders(read_manifest(bundle), record.target, record.precision):
            shutil.rmtree(bundle / folder, ignore_errors=True)
        raise
    for folder in draft.replaced:
        shutil.rmtree(bundle / folder, ignore_errors=True)
    return kept


def _folders(manifest: Manifest, target: str, precision: str) -> set[str]:
    """Return the folders in a bundle that an engine's files lie in."""
    artefact = manifest.artefact(target, precision)
    return {file.partition("/")[0] for file in artefact.files if "/" in file} if artefact else set()


def keep_trials(bundle: str | os.PathLike[str], rows: Sequence[dict[str, Any]]) -> Manifest:
    """Write the rows of `--precision auto` into the manifest."""
    folder = Path(bundle)
    with _locked(folder):
        manifest = replace(read_manifest(folder), trials=tuple(rows))
        manifest.write()
    return manifest


@contextlib.contextmanager
def _locked(bundle: Path) -> Iterator[None]:
    """Let one process at a time change a bundle, where the system has file locks."""
    try:
        import fcntl
    except ModuleNotFoundError:
        yield
        return
    handle = os.open(bundle, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
