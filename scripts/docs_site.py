"""A hook of `mkdocs build`: the pictures of `bench/results/`, which lie outside of `docs/`, are part of the site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
RESULTS = "bench/results"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pictures to the site's files."""
    for path in sorted((ROOT / RESULTS).iterdir()):
        if path.suffix in {".svg", ".jpg", ".png"}:
            files.append(File.generated(config, f"{RESULTS}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead a page's pictures there: on GitHub they are found from `docs/`, on the site from its root."""
    return markdown.replace(f"](../{RESULTS}/", f"]({RESULTS}/")
