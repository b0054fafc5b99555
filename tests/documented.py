"""The code blocks of the documentation: which there are, and how a test runs them.

An HTML comment before a block says how it is tested; there may be several:

- `<!-- not run: REASON -->`: its commands are not run here, but their options are checked.
- `<!-- may fail a check: REASON -->`: its commands may end with exit code 3.
- `<!-- run with: A -> B -->`: what is run has B in the place of A; the options of what is written are checked as well.

Trainings and generated videos are small here: `SMALL` says how.
"""

from __future__ import annotations

import argparse
import functools
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tyro

ROOT = Path(__file__).parents[1]
#: What a user reads, in the order of the site. README.md comes first: the other pages go on with what its commands made.
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "DEVELOPERS.md", ROOT / "export" / "plugin" / "README.md")

#: Command -> options that are added where it is run, so that it takes a second.
SMALL = {
    "train": "--width 0.25 --blocks 1 --size 32 --short-side 32 --epochs 1 --no-pretrained",
    "shapes": "--train-videos 24 --val-videos 12 --size 32 --frames 16",
}

_BLOCK = re.compile(r"(?P<notes>(?:^<!--.*?-->\n\n?)*)^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_NOTE = re.compile(r"<!--\s*(not run|may fail a check|run with):\s*(.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str
    """Why it is not run; empty where it is."""
    may_fail: str
    """Why a check may fail where it runs; empty where none may."""
    substitutions: tuple[tuple[str, str], ...]
    """What is replaced by what before it is run."""

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def text_as_run(self) -> str:
        """The block with its substitutions."""
        text = self.text
        for old, new in self.substitutions:
            assert old in text, f"{self.place}: nothing to replace: {old!r} is not in the block"
            text = text.replace(old, new)
        return text

    def commands(self, *, as_run: bool = False) -> Iterator[list[str]]:
        """Yield the arguments of each command: as they are written, or as they are run."""
        text = self.text_as_run if as_run else self.text
        for line in text.replace("\\\n", " ").splitlines():
            if arguments := shlex.split(line.removesuffix(" &"), comments=True):
                small = SMALL.get(arguments[1], "") if as_run and arguments[0] == "flowless" else ""
                yield [*arguments, *small.split()]


def blocks_of(page: Path) -> list[Block]:
    """Return a page's fenced blocks in their order."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in _BLOCK.finditer(text):
        notes: dict[str, list[str]] = {"not run": [], "may fail a check": [], "run with": []}
        for kind, value in _NOTE.findall(match["notes"]):
            notes[kind].append(value)
        pairs = [value.partition(" -> ") for value in notes["run with"]]
        found.append(
            Block(
                page=page,
                line=text[: match.start("text")].count("\n"),
                language=match["language"],
                text=match["text"],
                not_run=" ".join(notes["not run"]),
                may_fail=" ".join(notes["may fail a check"]),
                substitutions=tuple((old.strip(), new.strip()) for old, _, new in pairs),
            )
        )
    return found


class Parsed(Exception):
    """The arguments of a command were parsed; the command itself is not run."""


def check_options(run: Callable[[list[str]], int | None], arguments: list[str], place: str) -> None:
    """Parse the arguments of a command without running it.

    Args:
        run: The command, such as `flowless.cli.main`.
        arguments: What it is called with.
        place: File and line, for the message.

    Raises:
        AssertionError: The command does not take these arguments.
    """
    code: object
    with parsing_alone():
        try:
            code = run(arguments)
        except Parsed:
            return
        except SystemExit as stop:
            code = stop.code
    assert not code, f"{place}: it does not take {shlex.join(arguments)}"


@contextmanager
def parsing_alone() -> Iterator[None]:
    """Let every command end, by `Parsed`, where its arguments have been parsed."""
    parse, parse_args = tyro.cli, argparse.ArgumentParser.parse_args

    def parsed(taken: Callable[..., Any], **how: Any) -> Any:
        if not isinstance(taken, type):
            taken = functools.wraps(taken)(lambda *_, **__: None)  # tyro calls a function that it has parsed the arguments of
        parse(taken, **how)
        raise Parsed

    def parsed_args(parser: argparse.ArgumentParser, *given: Any, **how: Any) -> Any:
        found = parse_args(parser, *given, **how)
        if parser.prog.startswith("flowless"):
            raise Parsed
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tyro, "cli", parsed)
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed_args)
        yield
