"""Everything that the documentation shows works: its commands and Python blocks run, its links lead somewhere."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from documented import PAGES, ROOT, Block, blocks_of, check_options

import flowless
from flowless.bench.commands import BENCHMARKS
from flowless.cli import COMMANDS, main
from flowless.train.models.options import MODELS

#: Modules that are commands by themselves: python -m MODULE.
_MODULES = {
    "flowless": "flowless.cli:main",
    "flowless.bench.gpu.command": "flowless.bench.gpu.command:main",
    "flowless.export.plugin.plugin_library": "flowless.export.plugin.plugin_library:main",
}
_INLINE = re.compile(r"`flowless ([a-z]+)(?: ([a-z-]+))?[^`\n]*`")
#: What `scripts/readme_figures.py` renders.
_FIGURES = re.compile(r"<!-- figures: .*?<!-- end of figures -->", re.DOTALL)
_OPTION = re.compile(r"(?<![\w-])--[a-z][A-Za-z-]+")
#: Options in the text that are another program's.
_OTHER_PROGRAMS = {"--version", "--dynamicPlugins", "--python"}
_COMMANDS = [
    (block, arguments) for page in PAGES for block in blocks_of(page) if block.language == "bash" for arguments in block.commands()
]


def command_of(arguments: list[str]) -> tuple[Callable[[list[str]], int | None], list[str]] | None:
    """Return the function that a command line calls and its arguments; None for a program that is not ours."""
    program, *rest = [item for item in arguments if not re.fullmatch(r"[A-Z_]+=\S+", item)]  # without variables before the program
    if program == "flowless":
        return main, rest
    if program.endswith("python") and rest[:1] == ["-m"] and rest[1] in _MODULES:
        module, _, function = _MODULES[rest[1]].partition(":")
        return getattr(importlib.import_module(module), function), rest[2:]
    return None


@pytest.mark.parametrize(
    ("block", "arguments"), _COMMANDS, ids=[f"{block.place} {' '.join(arguments)[:50]}" for block, arguments in _COMMANDS]
)
def test_a_command_takes_the_options_that_are_written(block: Block, arguments: list[str]) -> None:
    if command := command_of(arguments):
        check_options(*command, block.place)
    elif arguments[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(arguments[1:]) <= set(targets), f"{block.place}: no such target"
    else:
        assert block.not_run, f"{block.place}: nothing checks {arguments[0]}; say why it is not run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_hides_in_a_block_that_is_not_tested(page: Path) -> None:
    hidden = [
        block.place
        for block in blocks_of(page)
        if block.language not in {"bash", "python"} and re.search(r"^\s*(flowless|make|pip|python) ", block.text, flags=re.MULTILINE)
    ]
    assert not hidden


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    text = _FIGURES.sub("", page.read_text(encoding="utf-8"))
    for command, benchmark in _INLINE.findall(text):
        assert command in COMMANDS, f"flowless {command}"
        assert command != "bench" or not benchmark or benchmark in BENCHMARKS, f"flowless bench {benchmark}"
    unknown = set(_OPTION.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))) - _known_options()
    assert not unknown, "no command has these options"


@functools.cache
def _known_options() -> set[str]:
    """Return the options of all commands, as their `--help` lists them."""
    families = {model.rpartition("-")[0]: model for model in MODELS}
    requested = (
        [[name] for name in COMMANDS]
        + [["bench", name] for name in BENCHMARKS]
        + [["train", f"{model}/tiny"] for model in families.values()]
    )
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        for arguments in requested:
            with contextlib.suppress(SystemExit):
                main([*arguments, "--help"])
    return set(_OPTION.findall(text.getvalue())) | _OTHER_PROGRAMS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_the_text_exist(page: Path) -> None:
    paths = re.findall(r"`([a-z]+/[\w./-]+(?:\.py|\.json|/))`", page.read_text(encoding="utf-8"))
    assert not [path for path in paths if not (ROOT / path).exists() and not path.startswith(("runs/", "build/")) and "CARD" not in path]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert not [link for link in links if link and not (page.parent / link).exists()]


def test_every_command_and_benchmark_is_documented() -> None:
    commands, benchmarks = ((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("commands", "benchmarks"))
    assert re.findall(r"^\| `flowless ([a-z]+)` \|", commands, flags=re.MULTILINE) == list(COMMANDS)
    assert set(re.findall(r"^\| `([a-z-]+)` \|", benchmarks, flags=re.MULTILINE)) == set(BENCHMARKS)


def test_the_signatures_of_the_functions_are_the_real_ones() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    written = dict(re.findall(r"^## flowless\.(\w+)\n\n`\w+(\(.*\)) -> \w+`$", text, flags=re.MULTILINE))
    assert set(written) == set(flowless.__all__) - {"CheckFailed", "FlowlessError", "__version__"}
    for name, signature in written.items():
        real = inspect.signature(flowless.__getattr__(name))
        bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in real.parameters.values()]
        assert signature == str(inspect.Signature(bare)).replace("'", '"'), f"flowless.{name}"


@pytest.fixture(scope="module")
def finished(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos in which the commands of README.md have run: what the other pages begin with."""
    folder = tmp_path_factory.mktemp("docs") / "readme"
    for split in ("train", "val"):
        shutil.copytree(shapes / split, folder / "videos" / split)
    shutil.copy2(next((folder / "videos" / "val").rglob("*.mp4")), folder / "clip.mp4")
    run_page(ROOT / "README.md", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_from_top_to_bottom(page: Path, finished: Path, tmp_path: Path) -> None:
    if page == ROOT / "README.md":
        return  # the fixture ran it
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    run_page(page, folder)


def run_page(page: Path, folder: Path) -> None:
    """Run what a page shows, in its order, in a folder, with a cache that no other test uses."""
    names = {"__name__": "documented"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FLOWLESS_CACHE", str(folder / "cache"))
        for block in blocks_of(page):
            if block.not_run:
                continue
            if block.language == "bash":
                run_commands(block)
            elif block.language == "python":
                run_python(block, names)


def run_commands(block: Block) -> None:
    """Run a block's commands, those of `flowless` in this process, where the libraries are loaded already."""
    for arguments in block.commands(as_run=True):
        if arguments[0] == "flowless":
            assert main(arguments[1:]) in ({0, 3} if block.may_fail else {0}), f"{block.place}: {' '.join(arguments)}"
        else:
            program = [sys.executable, *arguments[1:]] if arguments[0] == "python" else arguments
            subprocess.run(program, check=True)


def run_python(block: Block, names: dict[str, Any]) -> None:
    """Run a Python block with the names that the page's blocks before it made."""
    exec(compile(block.text_as_run, block.place, "exec"), names)
