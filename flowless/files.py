"""Atomic writing of files and folders, and file hashes."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flowless.errors import FlowlessError

#: Errors that say that the disk is full, or the file as large as it may be.
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EROFS, errno.EPERM}


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, remove it if not.

    A symbolic link stays; the file that it points to is replaced.

    Raises:
        FlowlessError: The disk is full, `path` cannot be written, or it is a device or a pipe.
    """
    _refuse_special(path)
    target = Path(os.path.realpath(path))
    with _wrap_io_errors(target):
        with _wrap_io_errors(target, place=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            # Keep the suffix last: encoders and parsers choose their format by it.
            handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        draft = Path(name)
        try:
            yield draft
            with _wrap_io_errors(target, place=True):
                draft.chmod(0o666 & ~_umask())
                draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)


def drafts_of(path: str | os.PathLike[str]) -> list[Path]:
    """Return the temporary files that killed processes left beside `path` in `whole_file`."""
    target = Path(os.path.realpath(path))
    return list(target.parent.glob(f".{glob.escape(target.stem)}.????????{glob.escape(target.suffix)}"))


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` if the block succeeds, remove it if not.

    An existing folder at `path` stays untouched until the new one is complete.
    """
    target = Path(path)
    with _wrap_io_errors(target):
        with _wrap_io_errors(target, place=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        older = draft.with_name(draft.name + ".older")
        try:
            yield draft
            with _wrap_io_errors(target, place=True):
                draft.chmod(0o777 & ~_umask())
                if target.exists():
                    target.replace(older)
                draft.replace(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            if older.exists() and not target.exists():
                older.replace(target)
            shutil.rmtree(older, ignore_errors=True)


def refuse_unwritable(path: str | os.PathLike[str]) -> None:
    """Check before long work that `whole_file` will be able to write `path`.

    Raises:
        FlowlessError: `path` is a folder, a device or a pipe, or no file can be written beside it.
    """
    _refuse_special(path)
    target = Path(os.path.realpath(path))
    with _wrap_io_errors(target, place=True):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        made = [folder for folder in target.parents if not folder.exists()]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=target.parent).close()
        finally:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()


def _refuse_special(path: str | os.PathLike[str]) -> None:
    """Raise FlowlessError where `path` is a device or a pipe, which a rename would replace by a file."""
    target = Path(path)
    with _wrap_io_errors(target, place=True):
        if target.exists() and not target.is_file() and not target.is_dir():
            raise FlowlessError(f"{target}: not a regular file but a device or a pipe, so it is not replaced. Name another file.")


def absolute(path: str | os.PathLike[str]) -> str:
    """Return an absolute path without resolving links; `..` is removed only where the path then still names the same file."""
    short = os.path.abspath(path)  # noqa: PTH100
    whole = os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118
    return short if ".." not in Path(path).parts or os.path.realpath(short) == os.path.realpath(whole) else whole


def write_json(path: str | os.PathLike[str], document: Any) -> None:
    """Write `document` as indented JSON, atomically."""
    with whole_file(path) as draft:
        draft.write_text(json_text(document) + "\n", encoding="utf-8")


def json_text(document: Any) -> str:
    """Return indented JSON; non-ASCII characters are escaped only where a file name in it is not valid UTF-8."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(document, indent=2)
    return text


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def printable(path: str | os.PathLike[str]) -> str:
    r"""Return a path as printable text: bytes that are not valid UTF-8 become escapes such as `\xE9`."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8").replace("\\udc", "\\x")


@contextmanager
def _wrap_io_errors(target: Path, *, place: bool = False) -> Iterator[None]:
    """Turn "disk full" and "permission denied" into a FlowlessError that names `target`; with `place`, every OSError.

    A permission error about a file that is not a draft of `target` names that file: the block may read other files.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise FlowlessError(
                f"{target}: the disk is full ({error.strerror}). Nothing was kept of this file; free some space and run again."
            ) from error
        if error.errno in _FORBIDDEN and not place and not _lies_beside(error.filename, target):
            raise FlowlessError(
                f"{printable(os.fsdecode(error.filename))}: cannot be used ({error.strerror}). Allow it, or name another file."
            ) from error
        if place or error.errno in _FORBIDDEN:
            raise FlowlessError(f"{target}: cannot write there ({error.strerror}). Choose a place that you may write to.") from error
        raise


def _lies_beside(name: Any, target: Path) -> bool:
    """Return whether the file that an error names is a draft of `target` or lies in one; True where the error names no file."""
    if not isinstance(name, str | bytes):
        return True
    place = Path(os.fsdecode(name)).absolute()
    draft = next((folder for folder in (place, *place.parents) if folder.parent == target.parent.absolute()), None)
    return draft is not None and (draft == target.absolute() or draft.name.startswith(f".{target.stem}."))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
