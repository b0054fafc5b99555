"""The `flowless` command: help, usage errors, exit codes and output."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from flowless import CheckFailed, FlowlessError, console
from flowless.cli import COMMANDS, main, run_command

HEAVY = ("torch", "nvidia", "onnx", "lightning", "timm", "openvino", "onnxruntime", "matplotlib", "torchvision")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


def test_no_arguments_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out


def test_an_unknown_command_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    message = capsys.readouterr().err
    assert "trian" in message
    assert "train" in message


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_without_heavy_imports(name: str) -> None:
    program = (
        "import sys\n"
        "from flowless.cli import main\n"
        "try:\n"
        f"    code = main([{name!r}, '--help'])\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert name in done.stdout


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code"),
    [(FlowlessError("clip.mp4: empty"), 1), (CheckFailed("too far"), 3), (KeyboardInterrupt(), 130)],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: _raise(error)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(error) in captured.err


def test_a_missing_library_names_its_extra(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: _raise(ModuleNotFoundError("No module named 'torch'", name="torch"))) == 1
    assert "flowless[train]" in capsys.readouterr().err.replace("\n", "")


def test_a_narrow_terminal_truncates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.StringIO()
    monkeypatch.setattr(console, "_out", Console(file=printed, width=20))
    table = Table("add")
    table.columns[0].no_wrap = True
    table.add_row("a-name-longer-than-the-line")
    console.emit({}, table, as_json=False)
    assert "a-name-longer-than-the-line" in re.sub(r"[^a-z-]", "", printed.getvalue())


def test_a_missing_module_of_flowless_is_not_reported_as_a_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError):
        run_command(lambda: _raise(ModuleNotFoundError("No module named 'flowless.missing'", name="flowless.missing")))
