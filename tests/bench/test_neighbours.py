"""Work beside other programs: what is fair, what is measured, and that nothing stays behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowless.bench.speed.neighbours import ASLEEP, DEFAULTS, Neighbours, fair_share, goals, readme_lines, row_of
from flowless.bench.speed.neighbours_workers import Piece, Worker
from flowless.cli import main
from flowless.errors import FlowlessError


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of the workers whose inputs are in a folder."""
    lines = [entry / "cmdline" for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    found = []
    for line in lines:
        try:
            found.append(line.read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has just ended
            continue
    return [words for words in found if str(folder) in words and "-m flowless.bench.speed.neighbours_work " in words]


@pytest.mark.parametrize(
    ("used", "other", "cores", "share"),
    [
        (2.0, 1.0, 2, 1.0),  # all of two cores, beside a busy one: that one is the other's
        (2.0, 2.0, 2, 1.0),
        (1.0, 1.0, 2, 1.0),  # one of two cores: there is room
        (1.5, 1.5, 2, 1.0),
        (8.0, 1.0, 8, 7.0),
        (8.0, 8.0, 8, 4.0),
        (3.0, 8.0, 8, 3.0),  # less than its half: it gets what it wants
        (1.0, 1.0, 1, 0.5),
    ],
)
def test_cores_are_shared_out_fairly(used: float, other: float, cores: int, share: float) -> None:
    assert fair_share(used, other=other, cores=cores) == pytest.approx(share)


def test_a_row_is_times_over_fair_times_and_its_goals() -> None:
    def pieces(*seconds: float, busy: float) -> list[Piece]:
        return [Piece(start=1.0, end=1.0 + one, cpu_s=busy * one) for one in seconds]

    found = {"alone": pieces(0.9, 1.0, 5.0, busy=2.0), "busy": pieces(2.2, busy=1.0), "second": pieces(4.0, 4.2, 3.8, busy=1.0)}
    row = row_of("training", ASLEEP, found, used=2.0, cores=2)
    assert (row["alone_ms"], row["busy_fair_ms"], row["second_fair_ms"]) == (1000.0, 2000.0, 2000.0)
    assert (row["busy_ratio"], row["second_ratio"]) == (1.1, 2.0)
    # What keeps a core busy while it waits does not raise its fair time: cores used are those of threads that sleep.
    assert row_of("training", DEFAULTS, found, used=1.0, cores=2)["second_fair_ms"] == 1000.0
    met = {goal["goal"]: goal["met"] for goal in goals([row, {**row, "waiting": DEFAULTS}])}
    assert met == {
        "training beside a busy core, over its fair time": True,
        "training beside a second of its kind, over its fair time": False,
    }
    slow = {**row, "waiting": DEFAULTS, "alone_ms": 800.0, "second_ratio": 4.3, "busy_ratio": 3.0}
    assert readme_lines({"environment": {"cores": 2}, "rows": [row, slow]})[-1] == "| training | 1.25 | 1.1 (3.0) | 2.0 (4.3) |"


def test_settings_that_measure_nothing_are_refused() -> None:
    with pytest.raises(FlowlessError, match=r"'tensorflow' is no kind.*rounds is 0; it must be at least 1"):
        Neighbours(kinds=("tensorflow",), rounds=0)


def test_a_worker_that_fails_says_why_and_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FlowlessError, match=r"openvino failed: .*manifest"):
        Worker("openvino", tmp_path)
    assert processes_of(tmp_path) == []


def test_a_busy_core_is_busy_until_it_is_closed(tmp_path: Path) -> None:
    with Worker("busy", tmp_path) as worker:
        place = Path(f"/proc/{worker._process.pid}/stat")
        before = int(place.read_text().split()[13])
        time.sleep(1)
        assert int(place.read_text().split()[13]) > before
    assert processes_of(tmp_path) == []


def test_a_worker_ends_with_the_command_that_began_it(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom flowless.bench.speed.neighbours_workers import Worker\n"
        "worker = Worker('busy', Path(sys.argv[1]))\nos._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == 9
    deadline = time.monotonic() + 30
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(tmp_path) == []


@pytest.mark.slow
def test_the_whole_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    words = ["bench", "neighbours", "--quick", "--kinds", "evaluation", "onnxruntime", "--no-baseline"]
    assert main([*words, "--out", str(tmp_path / "out.json"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out.json").read_text())
    assert [row["kind"] for row in document["rows"]] == list(document["kinds"])
    assert all(row[f"{name}_ratio"] > 0 for row in document["rows"] for name in ("busy", "second"))
    assert len(document["goals"]) == 2 * len(document["rows"])
    # (DALI and PyTorch keep files of their own until this process, which makes the inputs, ends.)
    assert (tmp_path / "out.json").is_file()
    assert not list(tmp_path.glob("flowless-*"))
    assert processes_of(tmp_path) == []


#: What the benchmark does around its workers, with one that needs no inputs.
STOPPED = """
import sys, tempfile, time
from pathlib import Path
from flowless.bench.speed.neighbours_workers import Worker, ended_in_order
from flowless.cli import run_command

def measure():
    with ended_in_order(), tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder, Worker("busy", Path(folder)):
        print("ready", flush=True)
        time.sleep(100)

sys.exit(run_command(measure))
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle_it_leaves_nothing(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        said, workers = command.stdout.readline(), processes_of(tmp_path)
        command.send_signal(sent)
        assert command.wait(timeout=60) == code
        assert (said, len(workers)) == ("ready\n", 1)
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
