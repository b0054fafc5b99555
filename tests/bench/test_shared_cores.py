"""Work beside other programs: what is fair, what is measured, and that no process and no file is left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from readme_figures import render

from flowless.bench.speed.shared_cores import ASLEEP, DEFAULTS, Piece, fair_share, goals, row_of, worker
from flowless.cli import main
from flowless.errors import FlowlessError


def processes_of(folder: Path) -> list[dict[str, str]]:
    """Return the environments of the workers whose temporary files are in a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if b"spawn_main" not in (place / "cmdline").read_bytes():
                continue
            items = (place / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has just ended, or is another user's
            continue
        found.append(dict(item.split("=", 1) for item in items if "=" in item))
    return [variables for variables in found if variables.get("TMPDIR", "").startswith(str(folder))]


@pytest.mark.parametrize(
    ("used", "other", "cores", "share"),
    [
        (2.0, 1.0, 2, 1.0),  # all of two cores, beside a busy one: that one is the other's
        (2.0, 2.0, 2, 1.0),
        (1.0, 1.0, 2, 1.0),  # one of two cores is free
        (1.5, 1.5, 2, 1.0),
        (8.0, 1.0, 8, 7.0),
        (8.0, 8.0, 8, 4.0),
        (3.0, 8.0, 8, 3.0),  # less than its half: it gets what it wants
        (1.0, 1.0, 1, 0.5),
    ],
)
def test_cores_are_shared_fairly(used: float, other: float, cores: int, share: float) -> None:
    assert fair_share(used, other=other, cores=cores) == pytest.approx(share)


def test_a_row_is_times_over_fair_times_and_its_goals() -> None:
    def pieces(*seconds: float) -> list[Piece]:
        return [Piece(seconds=one, end=1.0 + one, cpu_s=2 * one) for one in seconds]

    found = {"alone": pieces(0.9, 1.0, 5.0), "busy": pieces(2.2), "second": pieces(4.0, 4.2, 3.8)}
    row = row_of("training", ASLEEP, found, used=2.0, cores=2)
    assert (row["alone_ms"], row["busy_ratio"], row["second_ratio"]) == (1000.0, 1.1, 2.0)
    # Of work that uses one core of two, twice the time beside another is not fair.
    assert row_of("training", DEFAULTS, found, used=1.0, cores=2)["second_ratio"] == 4.0
    met = {goal["goal"]: goal["met"] for goal in goals([row, {**row, "waiting": DEFAULTS}])}
    assert met == {
        "training beside a busy core, over its fair time": True,
        "training beside a second of its kind, over its fair time": False,
    }


def test_what_is_not_a_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "shared-cores", "--kinds", "tensorflow"])
    assert "tensorflow" in capsys.readouterr().err


def test_a_worker_that_fails_says_why_and_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FlowlessError, match=r"openvino failed: .*manifest"), worker("openvino", tmp_path):
        pass
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("waiting", [ASLEEP, DEFAULTS])
def test_a_busy_core_is_busy_until_the_block_ends(tmp_path: Path, waiting: str) -> None:
    with worker("busy", tmp_path, waiting=waiting):
        (process,) = multiprocessing.active_children()
        place = Path(f"/proc/{process.pid}/stat")
        before = int(place.read_text().split()[13])
        time.sleep(1)
        assert int(place.read_text().split()[13]) > before
        (variables,) = processes_of(tmp_path)
        # By default threads wait as the libraries have it: flowless' own setting is not inherited.
        assert (variables.get("OMP_WAIT_POLICY"), variables.get("GOMP_SPINCOUNT")) == (
            ("ACTIVE", "300000") if waiting == DEFAULTS else (None, None)
        )
    assert processes_of(tmp_path) == []


#: What the benchmark does around its workers, with one that needs no inputs.
PROGRAM = """
import os, sys, tempfile, time
from pathlib import Path
from flowless.bench.speed import shared_cores
from flowless.cli import run_command

def inputs(folder, network):
    with shared_cores.worker("busy", folder):
        print("ready", flush=True)
        if sys.argv[2] == "exit":
            os._exit(9)
        time.sleep(100)

if __name__ == "__main__":
    shared_cores._make_inputs = inputs
    tempfile.tempdir = sys.argv[1]
    sys.exit(run_command(lambda: shared_cores.main(["--out", sys.argv[1] + "/out.json"])))
"""


def gone(folder: Path) -> bool:
    deadline = time.monotonic() + 30
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not processes_of(folder)


def test_a_worker_ends_with_the_command_that_began_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run([sys.executable, program, str(tmp_path), "exit"], check=False, env={**os.environ, "TMPDIR": "/tmp"})
    assert done.returncode == 9
    assert gone(tmp_path)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle_it_leaves_nothing(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with subprocess.Popen([sys.executable, program, str(tmp_path), "wait"], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        printed, workers = command.stdout.readline(), processes_of(tmp_path)
        command.send_signal(sent)
        assert command.wait(timeout=60) == code
        assert (printed, len(workers)) == ("ready\n", 1)
    assert gone(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]


@pytest.mark.slow
def test_the_whole_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    args = ["bench", "shared-cores", "--quick", "--kinds", "onnxruntime", "--out", str(tmp_path / "out.json"), "--json"]
    assert main(args) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out.json").read_text())
    assert [(row["kind"], row["waiting"]) for row in document["rows"]] == [("onnxruntime", way) for way in (ASLEEP, DEFAULTS)]
    assert all(row[f"{name}_ratio"] > 0 for row in document["rows"] for name in ("busy", "second"))
    assert len(document["goals"]) == len(document["rows"])
    assert not list(tmp_path.glob("flowless-*"))
    assert processes_of(tmp_path) == []


def test_the_readme_shows_it(tmp_path: Path) -> None:
    results = Path(__file__).parents[2] / "bench" / "results"
    for path in results.glob("*.json"):
        if path.stem in {"throughput", "peers"}:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    row = {"kind": "training", "waiting": ASLEEP, "alone_ms": 1000.0, "busy_ratio": 1.1, "second_ratio": 2.0}
    slow = {**row, "waiting": DEFAULTS, "alone_ms": 800.0, "second_ratio": 4.3, "busy_ratio": 3.0}
    (tmp_path / "shared-cores.json").write_text(json.dumps({"environment": {"cores": 2}, "rows": [row, slow]}))
    assert "| training | 1.25 | 1.1 (3.0) | 2.0 (4.3) |" in render(tmp_path)
