"""The scan: source formats, refused files, labels, resuming, crashes, and the command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import barcode
import numpy as np
import pytest
from video_files import frames_of

from flowless.errors import FlowlessError
from flowless.pipeline.commands import scan as scan_command
from flowless.pipeline.dataset import scan as scan_module
from flowless.pipeline.dataset import scan_jobs
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.dataset.scan import ScanOptions, run_scan, scan
from flowless.pipeline.dataset.scan_jobs import Job, run_jobs
from flowless.pipeline.dataset.sources import FORMATS, list_source, read_labels
from flowless.pipeline.video.encode import write_video


def video(path: Path, frames: int = 12) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, (barcode.draw(number) for number in range(frames)), options={"g": "6", "preset": "ultrafast"})
    return path


@pytest.fixture(scope="session")
def tree_once(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "set"
    for name, frames in (("wave/a.mp4", 12), ("wave/b.MKV", 3), ("clap/deep/c.mp4", 20), ("clap/d.webm", 7)):
        if name.endswith("webm"):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, (barcode.draw(number) for number in range(frames)), codec="libvpx-vp9", options={"cpu-used": "8"})
        else:
            video(root / name, frames)
    (root / "clap" / "empty.mp4").touch()
    (root / "clap" / "text[1].mp4").write_text("hello\n" * 20)
    (root / "clap" / "notes.txt").write_text("no video")
    (root / "clap" / ".hidden.mp4").touch()
    (root / "README.md").write_text("about")
    (root / "wave" / "gone.mp4").symlink_to(root / "nowhere.mp4")
    return root


@pytest.fixture
def tree(tree_once, tmp_path) -> Path:
    return Path(shutil.copytree(tree_once, tmp_path / "set", symlinks=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_folder_per_class(tree, tmp_path, workers):
    out = tmp_path / "indices" / "train.jsonl"
    report = run_scan(tree, out=out, options=ScanOptions(workers=workers))
    index = DatasetIndex.load(out)
    assert index.labels == ("clap", "wave")
    assert [(record.id, record.label, record.frames) for record in index.videos] == [
        ("clap/d.webm", 0, 7),
        ("clap/deep/c.mp4", 0, 20),
        ("wave/a.mp4", 1, 12),
        ("wave/b.MKV", 1, 3),
    ]
    first = index.videos[2]
    info = first.info
    assert (info.width, info.height, info.fps, info.codec, info.rotation) == (160, 96, 25.0, "h264", 0)
    assert info.key_frames == (0, 6)
    assert barcode.read(frames_of(index.path_of(first), [7])[0]) == 7
    assert {item.path: item.reason for item in index.refused} == {
        "clap/empty.mp4": "the file is empty",
        "clap/text[1].mp4": "it is not a video that FFmpeg can read, or it is damaged or cut off",
        "wave/gone.mp4": "there is no such file",
    }
    assert report.ignored == ("README.md", "clap/notes.txt")
    assert report.resumed == 0
    assert [path.name for path in out.parent.iterdir()] == ["train.jsonl"], "no journal or draft is left"


def test_links_are_followed(tree, tmp_path):
    linked = tmp_path / "linked"
    (linked / "one").mkdir(parents=True)
    (linked / "one" / "x.mp4").symlink_to(tree / "wave" / "a.mp4")
    (linked / "two").symlink_to(tree / "clap")
    (tree / "clap" / "round").symlink_to(tree / "clap")  # a link to a parent folder must not cause an infinite loop
    index = scan(linked, out=tmp_path / "i.jsonl", workers=1)
    assert [record.id for record in index.videos] == ["one/x.mp4", "two/d.webm", "two/deep/c.mp4"]


def test_csv_with_parts(tree, tmp_path):
    table = tree / "list.csv"
    table.write_text(
        "path, label, start, end\n"
        "wave/a.mp4,up,0.08,0.2\n"  # 25 frames a second: frames 2, 3, 4
        "wave/a.mp4,down,0.2,\n"
        "clap/deep/c.mp4,up,,\n"
        "wave/b.MKV,up,5,6\n"
        "wave/b.MKV,,0,1\n"
        "wave/b.MKV,up,later,1\n"
        "wave/b.MKV,up,3,2\n"
        "clap/deep/c.mp4,up,,\n"
        f"{tree / 'clap' / 'd.webm'},down,,\n"
        "missing.mp4,up,,\n",
        encoding="utf-8-sig",
    )
    index = scan(table, format="csv", out=tmp_path / "i.jsonl", workers=1)
    assert index.labels == ("down", "up")
    assert [(record.id, index.labels[record.label], record.first_frame, record.frames) for record in index.videos] == [
        ("wave/a.mp4#0.08-0.2", "up", 2, 3),
        ("wave/a.mp4#0.2-", "down", 5, 7),
        ("clap/deep/c.mp4", "up", 0, 20),
        ("clap/d.webm", "down", 0, 7),
    ]
    reasons = [item.reason for item in index.refused]
    assert reasons == [
        "line 6: it has no label",
        "line 7: start is 'later'; it must be seconds, at least 0, or empty",
        "line 8: end is 2 s, which is not after start, 3 s",
        "line 9: listed already in line 4",
        "line 5: it has no frame from 5 s to 6 s; the video lasts 0.12 s",
        "line 11: there is no such file",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.mp4,wave\n", "first line has the columns"),
        ("path,label,begin\nx,y,1\n", "'begin'"),
        ("", "first line has the columns"),
        ("path,label\n", "it lists no video"),
    ],
)
def test_invalid_tables(text, reason, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text(text)
    with pytest.raises(FlowlessError, match=reason) as caught:
        list_source(table, format="csv")
    assert str(table) in str(caught.value)


def test_invalid_sources(tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.mp4").touch()
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)))
    for source, kind, reason in (
        (tmp_path / "nothing", "folder", "there is no such file or folder"),
        (tmp_path / "binary.csv", "folder", "--format csv"),
        (tmp_path / "flat", "folder", r"SOURCE/<class>/<video>"),
        (tmp_path / "binary.csv", "csv", "UTF-8"),
        (tmp_path / "flat", "csv", "it is not a regular file"),
        (tmp_path / "flat", "kinetics", f"it must be one of {', '.join(FORMATS)}"),
    ):
        with pytest.raises(FlowlessError, match=reason):
            list_source(source, format=kind)


def test_labels_of_another_index(tree, tmp_path):
    scan(tree, out=tmp_path / "train.jsonl", workers=1)
    video(tree / "jump" / "new.mp4")
    index = scan(tree, out=tmp_path / "val.jsonl", labels=tmp_path / "train.jsonl", workers=1)
    assert index.labels == ("clap", "wave")
    assert len(index.videos) == 4
    (reason,) = (item.reason for item in index.refused if item.path == "jump/new.mp4")
    assert reason == f"its label 'jump' is not among the 2 labels of {tmp_path / 'train.jsonl'}"


def test_read_labels(tmp_path):
    path = tmp_path / "labels"
    for text, names in (("b\na\n\n", ("b", "a")), ('["x", "y z"]', ("x", "y z")), ("0\n1\n10\n", ("0", "1", "10"))):
        path.write_text(text)
        assert read_labels(path) == names
    for text, reason in (("a\nb\na\n", r"\['a'\] appear more than once"), ("\n", "it has no labels"), ("[1, 2]", "not strings")):
        path.write_text(text)
        with pytest.raises(FlowlessError, match=reason):
            read_labels(path)
    with pytest.raises(FlowlessError, match="cannot be read"):
        read_labels(tmp_path / "none")


def test_numeric_labels_are_sorted_by_number(tmp_path):
    for name in ("10", "9", "100"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "x.mp4").touch()
    index = scan(tmp_path / "set", out=tmp_path / "i.jsonl", workers=1)
    assert index.labels == ("9", "10", "100")
    assert len(index.refused) == 3


def test_an_interrupted_scan_is_resumed(tree, tmp_path, monkeypatch):
    out = tmp_path / "i.jsonl"
    inner = scan_module.run_jobs

    def interrupted(jobs, *, workers):
        for number, pair in enumerate(inner(jobs, workers=1)):
            if number == 4:
                raise KeyboardInterrupt
            yield pair

    monkeypatch.setattr(scan_module, "run_jobs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_scan(tree, out=out)
    monkeypatch.setattr(scan_module, "run_jobs", inner)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["i.jsonl.journal"]
    journal = tmp_path / "i.jsonl.journal"
    journal.write_text(journal.read_text() + '{"key": ["torn')
    touched = tree / "clap" / "d.webm"  # the first file, already in the journal
    os.utime(touched, ns=(1, 1))

    inspected = []
    inspect_file = scan_jobs.inspect_file
    monkeypatch.setattr(scan_jobs, "inspect_file", lambda job: inspected.append(Path(job.path).name) or inspect_file(job))
    report = run_scan(tree, out=out, options=ScanOptions(workers=1))
    assert report.resumed == 3
    assert sorted(inspected) == ["a.mp4", "b.MKV", "d.webm", "gone.mp4"]
    assert not journal.exists()
    clean = run_scan(tree, out=tmp_path / "clean.jsonl", options=ScanOptions(workers=1))
    assert (clean.index.videos, clean.index.refused) == (report.index.videos, report.index.refused)


def test_the_journal_is_not_reused_with_other_options(tree, tmp_path, monkeypatch):
    out = tmp_path / "i.jsonl"

    def fails(self, path):
        raise FlowlessError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(DatasetIndex, "save", fails)
        with pytest.raises(FlowlessError, match="disk full"):
            run_scan(tree, out=out, options=ScanOptions(workers=1))
    assert not out.exists()
    assert run_scan(tree, out=out, options=ScanOptions(workers=1, decode=False)).resumed == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_keeps_the_journal_and_no_index(tmp_path, workers):
    short, long = video(tmp_path / "short.mp4", 40), video(tmp_path / "long.mp4", 3000)
    for number in range(1000):
        # The long videos, which come last, take minutes, so the scan is still running when it is interrupted.
        link = tmp_path / "set" / "class" / f"{number:04d}.mp4"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(short if number < 40 else long)
    out, journal = tmp_path / "i.jsonl", tmp_path / "i.jsonl.journal"
    command = [sys.executable, "-m", "flowless", "scan", str(tmp_path / "set"), "--out", str(out), "--workers", workers]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not journal.exists() or journal.read_text().count("\n") < 20):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # the whole terminal's group, as Ctrl-C does
    _, log = process.communicate(timeout=60)
    assert process.returncode == 130, log
    assert "Traceback" not in log
    assert "Run the same command again" in log
    assert not out.exists()
    assert journal.exists()
    for link in (tmp_path / "set").rglob("*.mp4"):
        if link.resolve() == long:
            link.unlink()
    report = run_scan(tmp_path / "set", out=out, options=ScanOptions(workers=1))
    assert 10 < report.resumed <= 40
    assert len(report.index.videos) == 40


def crash(job: Job):
    if "bad" in job.path:
        os.kill(os.getpid(), signal.SIGKILL)
    return scan_jobs.Inspection(reason="inspected")


def test_a_crashing_decoder_affects_only_its_file(monkeypatch):
    monkeypatch.setattr(scan_jobs, "inspect_with_timeout", crash)
    jobs = [Job(path=f"{'bad' if number == 7 else 'good'}{number}", parts=(), decode=True) for number in range(20)]
    found = {job.path: finding.reason for job, finding in run_jobs(jobs, workers=2)}
    assert len(found) == 20
    assert found.pop("bad7") == "the decoder crashed or hung"
    assert set(found.values()) == {"inspected"}


def test_an_unexpected_error_becomes_a_reason(monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("surprise")

    monkeypatch.setattr(scan_jobs, "open_reader", fails)
    assert scan_jobs.inspect_file(Job(path=__file__, parts=(), decode=True)).reason == "inspecting it failed (RuntimeError: surprise)"


def test_scan_command(tree, tmp_path, capsys):
    out = tmp_path / "i.jsonl"
    assert scan_command([str(tree), "--out", str(out), "--workers", "1", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["videos"] == 4
    assert document["frames"] == 42
    assert document["labels"] == ["clap", "wave"]
    assert document["ignored"] == 2
    assert [item["path"] for item in document["refused"]] == ["clap/empty.mp4", "clap/text[1].mp4", "wave/gone.mp4"]
    assert scan_command([str(tree), "--out", str(out), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "text[1].mp4" in printed
    assert "the file is empty" in printed


def test_scan_command_without_usable_videos(tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "x.mp4").touch()
    with pytest.raises(FlowlessError, match="it has no usable video"):
        scan_command([str(tmp_path / "set"), "--out", str(tmp_path / "i.jsonl")])
    assert DatasetIndex.load(tmp_path / "i.jsonl").refused[0].reason == "the file is empty"


def test_workers_must_be_positive(tree, tmp_path):
    with pytest.raises(FlowlessError, match="workers is 0"):
        scan(tree, out=tmp_path / "i.jsonl", workers=0)


def test_a_damaged_real_clip_is_refused(clips, tmp_path):
    folder = tmp_path / "set" / "things"
    folder.mkdir(parents=True)
    for name in ("corrupted.mp4", "rotated_90.mov", "unordered.mov"):
        (folder / name).symlink_to(clips / name)
    index = scan(tmp_path / "set", out=tmp_path / "i.jsonl", workers=1)
    assert [(record.id, record.frames, record.info.rotation) for record in index.videos] == [
        ("things/rotated_90.mov", 3, 90),
        ("things/unordered.mov", 4, 0),
    ]
    assert [(item.path, item.reason) for item in index.refused] == [("things/corrupted.mp4", "the stream is damaged near frame 28")]
    loaded = DatasetIndex.load(tmp_path / "i.jsonl")
    assert np.array_equal(frames_of(loaded.path_of(loaded.videos[1]), [2]), frames_of(clips / "unordered.mov", [2]))


def test_a_full_disk_leaves_no_files(tree, tmp_path):
    """The system limits the file size to a few bytes."""
    program = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
        "from flowless.cli import main\n"
        f"sys.exit(main(['scan', {str(tree)!r}, '--out', {str(tmp_path / 'out' / 'index.jsonl')!r}, '--workers', '1']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "index.jsonl" in done.stderr
    assert not (tmp_path / "out" / "index.jsonl").exists()


def test_only_an_index_is_replaced(tree, tmp_path):
    other = tmp_path / "film.mp4"
    other.write_bytes(b"a film")
    with pytest.raises(FlowlessError, match=r"film\.mp4: exists and is not an index, so it is not replaced"):
        scan(tree, out=other, workers=1)
    assert other.read_bytes() == b"a film"
    index = scan(tree, out=tmp_path / "index.jsonl", workers=1)
    assert scan(tree, out=tmp_path / "index.jsonl", workers=1) == index
    (tmp_path / "index.jsonl").write_text('{"format": "flowless-index", "version": 1}\n')
    assert scan(tree, out=tmp_path / "index.jsonl", workers=1) == index


def test_a_script_needs_no_main_guard(tmp_path, barcodes):
    """Spawned workers must not run the script again."""
    for number in range(3):
        (tmp_path / "set" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "a" / f"{number}.mp4").symlink_to(barcodes(barcode.KINDS[0]))
    script = tmp_path / "script.py"
    script.write_text("from flowless.pipeline import scan\nprint('once')\nprint(len(scan('set', out='index.jsonl', workers=2).videos))\n")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["once", "3"]
