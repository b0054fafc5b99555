"""The OpenMP wait policy: commands set it before PyTorch is imported, the user's setting is kept, and the library sets nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowless.thread_waiting import let_waiting_threads_sleep

ROOT = Path(__file__).parents[2]
#: The environment without the variables of the wait policy.
PLAIN = {name: value for name, value in os.environ.items() if name not in {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}}
#: Runs a program as `__main__`; prints at exit the wait policy, and whether PyTorch has been imported.
AS_MAIN = """
import atexit, os, runpy, sys
kind, name = sys.argv[1:3]
atexit.register(lambda: print("policy", os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules))
sys.argv = [name, *(["train"] if name in {"flowless", "flowless.cli"} else []), "--help"]
(runpy.run_path if kind == "path" else runpy.run_module)(name, run_name="__main__")
"""


def libgomp_settings(args: list[str], **variables: str) -> dict[str, str]:
    """Run a program that imports PyTorch; return the settings that its OpenMP library prints."""
    environment = {**PLAIN, "OMP_DISPLAY_ENV": "VERBOSE", **variables}
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
    return dict(re.findall(r"(\w+) = '(.*)'", done.stderr))


def test_a_command_sets_passive_waiting() -> None:
    read = libgomp_settings(["-m", "flowless", "doctor", "--json"])
    assert read["OMP_WAIT_POLICY"] == "PASSIVE"
    assert read["GOMP_SPINCOUNT"] == "0"


@pytest.mark.parametrize(("name", "value", "spins"), [("OMP_WAIT_POLICY", "ACTIVE", "30000000000"), ("GOMP_SPINCOUNT", "5000", "5000")])
def test_the_users_setting_is_kept(name: str, value: str, spins: str) -> None:
    assert libgomp_settings(["-m", "flowless", "doctor", "--json"], **{name: value})["GOMP_SPINCOUNT"] == spins


def test_importing_the_library_sets_nothing() -> None:
    assert (
        libgomp_settings(["-c", "import flowless, flowless.cli, flowless.thread_waiting, torch; flowless.load"])["GOMP_SPINCOUNT"]
        == "300000"
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("path", "export/build_engine.py"),
        ("path", "export/plugin/plugin_library.py"),
        ("module", "flowless"),
        ("module", "flowless.cli"),
        ("module", "flowless.bench.gpu.command"),
    ],
)
def test_every_program_sets_it_before_importing_pytorch(kind: str, name: str) -> None:
    done = subprocess.run([sys.executable, "-c", AS_MAIN, kind, name], capture_output=True, text=True, check=False, env=PLAIN, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "policy PASSIVE False", done.stderr


def test_the_tests_set_it_before_importing_pytorch() -> None:
    program = "import sys, os; import tests.conftest; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=PLAIN, cwd=ROOT)
    assert done.stdout.split() == ["PASSIVE", "False"]


def test_an_empty_variable_counts_as_unset() -> None:
    environment = {"OMP_WAIT_POLICY": ""}
    let_waiting_threads_sleep(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE"}
