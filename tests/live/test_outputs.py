"""What is made of a watcher's results: the board, lines, the overlay."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from made_items import file_size_limit, made_answer
from PIL import Image

from flowless.engines.live.events import Event
from flowless.engines.live.outputs.board import Board
from flowless.engines.live.outputs.lines import LineFile, StandardOutput, change_line, event_line, json_line
from flowless.engines.live.outputs.overlay import Caption, caption_of, drawn, jpeg
from flowless.engines.live.records import SourceChange
from flowless.errors import FlowlessError

EVENT = Event(source="cam", label="wave", index=1, state="began", begin_ns=500_000_000, begin_time=1000.5, peak=0.9, peak_ns=600_000_000)
ENDED = replace(EVENT, state="ended", end_ns=2_000_000_000, end_time=1002.0, why_ended="score")
WHITE = Caption(title="cam", text="wave 0.90", colour=(255, 255, 255))


# The board


def test_the_board_shows_rates_latencies_and_labels():
    board = Board(["cam", "other"], clock=lambda: 1003.0)
    board.see(SourceChange(source="cam", state="running"))
    for number in range(21):
        item = made_answer(number / 10, "wave" if number < 10 else "jump", frame=3 * number)
        board.see(replace(item, latency=0.1 if number == 20 else 0.01), [EVENT] if number == 5 else [])
    row, other = board.rows()
    assert (row.fps, row.scored) == pytest.approx((30, 10))
    assert row.p50 == 0.01
    assert row.p99 == pytest.approx(0.082)
    assert (row.state, row.label, row.dropped, row.pts_ns, row.actions) == ("running", "jump", 3, 2_000_000_000, ("wave",))
    assert [(run.label, run.begin, run.end) for run in row.runs] == [("wave", 1000.0, 1000.9), ("jump", 1001.0, 1002.0)]
    assert (other.state, other.fps, other.p50, other.label, other.runs) == ("connecting", 0, None, "", ())
    board.see(SourceChange(source="cam", state="waiting", reason="refused", reconnects=2), [ENDED])
    row = board.row("cam")
    assert (row.state, row.reason, row.reconnects, row.actions) == ("waiting", "refused", 2, ())


def test_the_time_in_which_a_source_was_lost_is_in_no_rate():
    board = Board(["cam"], clock=lambda: 1006.0)
    for begin in (0, 5):
        board.see(SourceChange(source="cam", state="running"))
        for number in range(10):
            board.see(made_answer(begin + number / 10, "wave", frame=2 * begin + number))
        assert board.row("cam").fps == pytest.approx(10)


def test_the_board_forgets():
    now = [1000.0]
    board = Board(["cam"], clock=lambda: now[0])
    for number in range(20_000):
        board.see(made_answer(number / 1000, "wave", number % 2))
    assert len(board.row("cam").runs) <= 240
    now[0] = 1100.0
    row = board.row("cam")
    assert (row.fps, row.p99, row.runs) == (0, None, ())


# Lines


def test_lines_for_people():
    assert re.fullmatch(r"\d\d:\d\d:\d\d  cam: wave began, score 0.90", event_line(EVENT))
    assert re.fullmatch(r"\d\d:\d\d:\d\d  cam: wave ended after 1.5 s, highest score 0.90", event_line(ENDED))
    waiting = SourceChange(source="cam", state="waiting", reason="refused", retry_in=2.5)
    assert change_line(waiting, 1000.0)[10:] == "cam is waiting: refused; next try in 2.5 s"


def test_what_controls_a_terminal_is_not_printed():
    assert "\x1b" not in event_line(replace(EVENT, label="a\x1b[2Jb\nc"))
    assert "\n" not in event_line(replace(EVENT, label="a\x1b[2Jb\nc"))
    assert "\n" not in json_line(replace(EVENT, label="a\nc"))


def test_a_file_of_lines_is_appended_to(tmp_path):
    path = tmp_path / "lines.jsonl"
    for text in ("one", "two"):
        file = LineFile(path, pytest.fail)
        file.write(text)
        file.close()
    assert path.read_text() == "one\ntwo\n"


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(FlowlessError, match=r"nowhere.*cannot be opened"):
        LineFile(tmp_path / "nowhere" / "lines.jsonl", pytest.fail)


def test_a_full_disk_leaves_whole_lines_and_is_reported_once(tmp_path):
    path, reports = tmp_path / "lines.jsonl", []
    file = LineFile(path, reports.append)
    file.write("x" * 9)
    with file_size_limit(15):  # half of the second line fits
        for _ in range(3):
            file.write("y" * 9)
    assert (path.read_text(), file.lost, len(reports)) == ("x" * 9 + "\n", 3, 1)
    file.write("z")
    file.close()
    assert path.read_text().splitlines() == ["x" * 9, "z"]
    assert "3 lines are missing" in reports[1]


_PRINT_LINES = """
from flowless.cli import run_command
from flowless.engines.live.outputs.lines import StandardOutput
import sys
def lines():
    output = StandardOutput()
    try:
        for number in range(10**9):
            output.write(f"line {number}")
    except KeyboardInterrupt:
        output.write(10**6 * "x")  # as the end of an event
        raise
sys.exit(run_command(lines))
"""


def test_a_reader_that_goes_away_ends_the_writer_without_a_trace():
    with subprocess.Popen([sys.executable, "-c", _PRINT_LINES], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(10) == 0


def test_without_a_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as after `>&-`
    StandardOutput().write("a line")


def test_ctrl_c_while_the_reader_is_stuck():
    with subprocess.Popen([sys.executable, "-c", _PRINT_LINES], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"l"
        time.sleep(0.5)  # now the pipe is full and the writer waits
        process.send_signal(2)
        assert process.wait(5) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b"flowless: stopped.\n"


# The overlay


@pytest.mark.parametrize(
    ("size", "drawn_size"),
    [
        ((1, 1), (240, 240)),
        ((32, 32), (256, 256)),
        ((97, 161), (288, 480)),
        ((360, 640), (360, 640)),
        ((361, 641), (360, 640)),
        ((1080, 1920), (1080, 1920)),
        ((2, 5000), (2, 5000)),
    ],
)
def test_the_size_of_a_drawn_picture(size, drawn_size):
    picture = np.full((*size, 3), 90, np.uint8)
    result = drawn(picture, WHITE)
    assert (result.shape, result.dtype) == ((*drawn_size, 3), np.uint8)
    assert (picture == 90).all(), "the watcher's frame is unchanged"
    assert (result != 90).any()


def test_a_wide_picture_is_made_narrower():
    assert drawn(np.zeros((1080, 1920, 3), np.uint8), WHITE, max_width=960).shape == (540, 960, 3)
    assert drawn(np.zeros((1920, 1080, 3), np.uint8), WHITE, max_width=960).shape == (1706, 960, 3)


def test_the_text_is_written_above_and_below_and_nowhere_else():
    picture = np.full((360, 640, 3), 90, np.uint8)
    result = drawn(picture, WHITE)
    assert result[:27].max() > 200
    assert result[-27:].max() > 200
    assert (result[27:-27] == 90).all()
    empty = drawn(picture, Caption(title="", text="", colour=(0, 0, 0)))
    assert (empty[27:] == 90).all()


@pytest.mark.parametrize("text", ["挥手", "שלום", "नमस्ते", "\U0001f600\u200d", "\u202eabc", "a\nb\x00\ud800", "e" + "\u0301" * 300, ""])
def test_labels_in_any_script(text):
    row = Board(["cam"]).row("cam")
    caption = caption_of(replace(row, state="running", label=text, score=0.5, name=text or "n", arrived=1e9))
    assert drawn(np.zeros((120, 160, 3), np.uint8), caption).shape == (240, 320, 3)


def test_a_long_text_is_cut():
    picture = np.zeros((240, 320, 3), np.uint8)
    long, longer = (drawn(picture, Caption(title="", text="wave " * count, colour=(255, 255, 255))) for count in (60, 90))
    assert (long == longer).all()
    assert (long[:, -4:] == 0).all()


def test_captions():
    row = Board(["cam"]).row("cam")
    assert caption_of(row).text == "connecting"
    lost = caption_of(replace(row, state="waiting", reason="connection refused"))
    assert lost.text == "waiting: connection refused"
    running = replace(row, state="running", label="wave", score=0.912, arrived=1.0, pts_ns=3_723_400_000_000)
    assert caption_of(running).text == "wave  0.91"
    assert caption_of(running).title.endswith("  1:02:03.4")
    assert caption_of(replace(running, actions=("wave",))).colour != caption_of(running).colour


def test_a_jpeg_is_decoded_again():
    picture = np.full((16, 16, 3), (200, 30, 60), np.uint8)
    assert np.abs(np.asarray(Image.open(io.BytesIO(jpeg(picture)))).astype(int) - picture).max() <= 3
