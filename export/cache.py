"""The cache of builds: its folder, its size limit, and `flowless cache`, which shows and empties it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.table import Table

from flowless.console import emit
from flowless.errors import FlowlessError

#: Limit of the cache in GB where FLOWLESS_CACHE_GB is not set.
DEFAULT_GB = 4.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Files of the cache that belong together: those of one folder and stem, such as a graph and its record."""

    files: tuple[Path, ...]
    size: int
    """Bytes of all files."""
    used: float
    """When it was last used, in seconds since 1970."""


def cache_folder() -> Path:
    """Return the folder of graphs and timing caches: `FLOWLESS_CACHE`, or `flowless` in the user's cache folder."""
    named = os.environ.get("FLOWLESS_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(named) if named else Path(base) / "flowless"
    if folder.is_file():
        raise FlowlessError(f"{folder}: a file. The cache is a folder; set FLOWLESS_CACHE to one.")
    return folder


def cache_limit() -> int:
    """Return the limit in bytes: `FLOWLESS_CACHE_GB`, by default 4 GB.

    Raises:
        FlowlessError: FLOWLESS_CACHE_GB is not a number, or negative.
    """
    text = os.environ.get("FLOWLESS_CACHE_GB", str(DEFAULT_GB))
    try:
        limit = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        limit = -1
    if limit < 0:
        raise FlowlessError(f"FLOWLESS_CACHE_GB is {text!r}; it must be a number of gigabytes, such as 4, at least 0.")
    return limit


def entries() -> list[Entry]:
    """Return the entries, the least recently used first. A file that another process removes meanwhile is left out."""
    found: dict[tuple[Path, str], list[tuple[Path, os.stat_result]]] = {}
    for folder in (cache_folder() / "graphs", cache_folder() / "tensorrt"):
        for path in folder.glob("*") if folder.is_dir() else ():
            try:
                found.setdefault((folder, path.stem), []).append((path, path.stat()))
            except FileNotFoundError:
                continue
    made = [
        Entry(files=tuple(path for path, _ in group), size=sum(stat.st_size for _, stat in group), used=max(s.st_mtime for _, s in group))
        for group in found.values()
    ]
    return sorted(made, key=lambda entry: entry.used)


def mark_used(path: Path) -> None:
    """Mark a file of the cache as used now, which makes it the last to be removed."""
    try:
        os.utime(path)
    except OSError:  # a read-only cache
        return


def shrink(limit: int) -> int:
    """Remove the least recently used entries until at most `limit` bytes are left; return the bytes removed.

    An entry that cannot be removed is skipped, so that a build does not fail because of its cache.
    """
    kept = entries()
    before = total = sum(entry.size for entry in kept)
    for entry in kept:
        if total <= limit:
            break
        with suppress(OSError):
            for path in entry.files:
                path.unlink(missing_ok=True)
            total -= entry.size
    return before - total


@dataclass(frozen=True, kw_only=True)
class CacheArgs:
    """Show or empty the cache of builds in the user's cache folder.

    It holds cast and quantised graphs, so that no graph is calibrated twice, and TensorRT's timings. The least recently used entries are
    removed when it exceeds FLOWLESS_CACHE_GB (4 by default; 0 keeps nothing). FLOWLESS_CACHE names another folder.
    """

    clear: bool = False
    """Remove everything in it. Bundles and their engines are not changed."""
    json: bool = False
    """Print one JSON document instead of a table."""


def main(arguments: Sequence[str]) -> None:
    """Run `flowless cache`."""
    args = tyro.cli(CacheArgs, args=list(arguments), prog="flowless cache", description=inspect.getdoc(CacheArgs))
    limit = cache_limit()
    removed = shrink(0) if args.clear else 0
    found = entries()
    if args.clear and found:
        raise FlowlessError(
            f"{cache_folder()}: {len(found)} of its entries cannot be removed, such as {found[0].files[0]}. Remove it by hand."
        )
    document: dict[str, Any] = {
        "folder": str(cache_folder()),
        "entries": len(found),
        "bytes": sum(entry.size for entry in found),
        "limit_bytes": limit,
        "removed_bytes": removed,
    }
    table = Table("", "", title=document["folder"], show_header=False)
    table.add_row("graphs and timings", str(document["entries"]))
    table.add_row("MB", f"{document['bytes'] / 1e6:.1f} of at most {limit / 1e6:.0f}")
    if args.clear:
        table.add_row("MB removed", f"{removed / 1e6:.1f}")
    emit(document, table, as_json=args.json)
