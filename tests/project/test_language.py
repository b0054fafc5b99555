"""Plain English: none of the terms that DEVELOPERS.md lists under Not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEVELOPERS = ROOT / "DEVELOPERS.md"
_NAMES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml", "mkdocs.yml", "export/plugin/README.md")
PAGES = (*(ROOT / name for name in _NAMES), *sorted((ROOT / "docs").rglob("*.md")), DEVELOPERS)
#: Folders whose names, docstrings, comments and messages are searched.
CLEAN = ("flowless", "pipeline", "train", "export", "engines", "bench", "examples", "scripts", "tests")
#: Where a term of the list is right: options of other programs, the 32 bits of a hash, a metadata key of older graphs, rendered figures.
ALLOWED = re.compile(
    r"--quiet\b|\"quiet\"|quiet=True|flowless\.insides|\b32-bit words\b|<!-- figures: .*?<!-- end of figures -->", re.DOTALL
)
_NOT = re.compile(r"^### Not$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def not_terms() -> tuple[str, ...]:
    """Return the terms and phrases that DEVELOPERS.md lists."""
    section = _NOT.search(DEVELOPERS.read_text(encoding="utf-8"))
    assert section is not None
    rows = re.findall(r"^\| (`.*?`) \|", section[0], flags=re.MULTILINE)
    return tuple(word for row in rows for word in re.findall(r"`([^`]+)`", row))


def found_in(text: str, terms: tuple[str, ...]) -> Iterator[str]:
    """Yield `line: term` for each term in a text: as whole words, also in names (`is_loud`, `IsLoud`) and across lines."""
    text = ALLOWED.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text)
    for term in terms:
        head, rest = term[0], r"[\s_#*]+".join(map(re.escape, term.split()))[1:]
        for match in re.finditer(rf"(?<![A-Za-z])(?:[{head}{head.upper()}]{rest}|{term.upper()})(?![A-Za-z])", text):
            yield f"line {text[: match.start()].count(chr(10)) + 1}: {term}"


def sources() -> list[Path]:
    """Return every source file of CLEAN: Python, C++, CUDA and CMake, pages and their style."""
    paths = [ROOT / name for name in CLEAN]
    # flowless/ links to the other folders.
    files = [file for path in paths for file in (path.glob("*") if path.name == "flowless" else path.rglob("*"))]
    return sorted(file for file in files if file.suffix in {".py", ".html", ".css", ".cu", ".cpp", ".h", ".txt"} and file != Path(__file__))


def test_the_list_is_there() -> None:
    assert len(not_terms()) > 20
    assert all((ROOT / name).exists() for name in CLEAN)


@pytest.mark.parametrize("path", [*PAGES, *sources()], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_in_plain_english(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path == DEVELOPERS:
        text = _NOT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    place = path.relative_to(ROOT).as_posix()
    assert not list(found_in(text, not_terms()))
    assert not list(found_in(place, not_terms())), "the file's name"


def test_terms_are_found_whole_in_text_and_in_names() -> None:
    terms = ("loud", "is quite", "loudness of")
    in_names = list(found_in("Loud.\n_loud_bar, LoudBar, LOUD_BAR; aloud, cloudy, loudly", terms))
    assert in_names == ["line 1: loud", *3 * ["line 2: loud"]]
    assert list(found_in("it is Quite\nit is\n# quite", terms)) == ["line 2: is quite"]
    assert list(found_in("the loudness\n    of it", terms)) == ["line 1: loudness of"]
