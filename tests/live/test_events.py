"""Events with hysteresis, on scores made by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from made_items import LABELS, made_answer

from flowless.engines.live.events import EventFinder, EventOptions
from flowless.engines.live.records import Answer, SourceChange
from flowless.errors import FlowlessError

#: No smoothing, and tenths of a second throughout.
SHARP = EventOptions(smooth=0, begin_above=0.6, begin_after=0.2, end_below=0.4, end_after=0.2, background=("none",))


def run(options: EventOptions, *shares: float, label: str = "wave", source: str = "cam"):
    """Feed one probability every 0.1 s; return the events as (state, label, begin, end) in seconds, and the finder."""
    finder, events = EventFinder(LABELS, options), []
    for number, share in enumerate(shares):
        events += finder.see(made_answer(number / 10, label, share, source))
    return finder, events


def spans(events) -> list[tuple]:
    return [(item.state, item.label, item.begin_ns / 1e9, None if item.end_ns is None else item.end_ns / 1e9) for item in events]


def test_an_action_begins_and_ends_at_the_first_frames_of_its_runs():
    _, events = run(SHARP, 0.1, 0.7, 0.9, 0.8, 0.5, 0.3, 0.2, 0.1, 0.1)
    assert spans(events) == [("began", "wave", 0.1, None), ("ended", "wave", 0.1, 0.5)]
    began, ended = events
    assert began.peak == pytest.approx(0.9, abs=1e-4)
    assert (ended.peak_ns, ended.why_ended, ended.index) == (200_000_000, "score", 1)
    assert (ended.begin_time, ended.end_time) == (1000.1, 1000.5)
    assert ended.seconds == pytest.approx(0.4)


def test_a_peak_after_the_beginning_counts():
    _, events = run(SHARP, 0.7, 0.7, 0.7, 0.95, 0.1, 0.1, 0.1)
    assert events[0].peak == pytest.approx(0.7, abs=1e-4)
    assert events[1].peak == pytest.approx(0.95, abs=1e-4)
    assert events[1].peak_ns == 300_000_000


@pytest.mark.parametrize(
    ("shares", "begins"),
    [
        ((0.61, 0.61, 0.61), True),  # exactly `begin_after` from the first to the last
        ((0.61, 0.61), False),
        ((0.61, 0.61, 0.59, 0.61, 0.61), False),  # each run is too short
        ((0.61, 0.61, 0.59, 0.61, 0.61, 0.61), True),
        ((0.59,) * 20, False),  # between the thresholds
    ],
)
def test_how_long_it_must_stay_above(shares, begins):
    _, events = run(SHARP, *shares)
    assert [item.state for item in events] == (["began"] if begins else [])


def test_both_thresholds_belong_to_the_action():
    """At `begin_above` it begins, at `end_below` it goes on; one half is exact in floating point."""
    half = EventOptions(smooth=0, begin_above=0.5, end_below=0.5, begin_after=0, end_after=0)
    finder = EventFinder(("a", "b"), half)
    tie = Answer(source="cam", frame=0, pts_ns=0, arrived=0, latency=0, top=(), scores=np.zeros(2, np.float32), dropped=0)
    assert [item.label for item in finder.see(tie)] == ["a", "b"]
    assert len(finder.active("cam")) == 2
    assert finder.see(tie) == []


def test_flicker_is_one_event():
    _, events = run(SHARP, 0.7, 0.8, 0.7, *(0.3, 0.7) * 10, 0.45, 0.5, 0.3, 0.2, 0.1)
    assert spans(events) == [("began", "wave", 0.0, None), ("ended", "wave", 0.0, 2.5)]


def test_without_hysteresis_the_same_flicker_is_many_events():
    loose = EventOptions(smooth=0, begin_above=0.6, begin_after=0, end_below=0.6, end_after=0, background=("none",))
    _, events = run(loose, *(0.3, 0.7) * 10)
    assert len(events) == 19


def test_two_actions_one_after_the_other():
    finder, events = EventFinder(LABELS, SHARP), []
    for number in range(12):
        events += finder.see(made_answer(number / 10, "wave" if number < 5 else "jump"))
    assert spans(events) == [
        ("began", "wave", 0.0, None),
        ("ended", "wave", 0.0, 0.5),  # the end comes before the beginning of the next
        ("began", "jump", 0.5, None),
    ]
    assert [item.label for item in finder.active("cam")] == ["jump"]


def test_the_same_action_twice():
    _, events = run(SHARP, *(0.9,) * 3, *(0.1,) * 3, *(0.9,) * 3, *(0.1,) * 3)
    assert [item.state for item in events] == ["began", "ended", "began", "ended"]
    assert events[2].begin_ns == 600_000_000


@pytest.mark.parametrize("state", ["waiting", "ended", "failed", "connecting"])
def test_a_lost_source_ends_its_events(state):
    finder, events = run(SHARP, 0.9, 0.9, 0.9, 0.9)
    assert [item.state for item in events] == ["began"]
    assert finder.see(SourceChange(source="other", state=state)) == []
    (ended,) = finder.see(SourceChange(source="cam", state=state))
    assert (ended.state, ended.end_ns, ended.why_ended) == ("ended", 300_000_000, "source")
    assert finder.see(SourceChange(source="cam", state=state)) == []
    assert finder.end() == []


def test_a_lost_source_forgets_what_had_not_begun():
    finder, _ = run(SHARP, 0.9, 0.9)
    finder.see(SourceChange(source="cam", state="waiting"))
    assert finder.see(SourceChange(source="cam", state="running")) == []
    assert finder.see(made_answer(0.2, "wave")) == []


@pytest.mark.parametrize(("next_at", "apart"), [(2.3, False), (2.31, True), (0.1, True)])
def test_a_gap_and_a_step_back_in_time_end_events(next_at, apart):
    finder, _ = run(SHARP, 0.9, 0.9, 0.9, 0.9)  # the last at 0.3 s; a gap is more than 2 s
    events = finder.see(made_answer(next_at, "wave"))
    assert [(item.state, item.end_ns, item.why_ended) for item in events] == ([("ended", 300_000_000, "gap")] if apart else [])


def test_an_event_that_was_falling_ends_where_it_fell():
    finder, _ = run(SHARP, 0.9, 0.9, 0.9, 0.1)
    (ended,) = finder.end()
    assert (ended.end_ns, ended.why_ended) == (300_000_000, "source")


def test_sources_are_apart():
    finder, events = EventFinder(LABELS, SHARP), []
    for number in range(4):
        events += finder.see(made_answer(number / 10, "wave", source="one"))
        events += finder.see(made_answer(100 + number / 10, "jump", source="two"))
    assert [(item.source, item.label) for item in events] == [("one", "wave"), ("two", "jump")]
    assert [item.source for item in finder.end()] == ["one", "two"]


def test_background_is_never_an_event():
    _, events = run(EventOptions(smooth=0, begin_after=0, background=("none", "jump")), 0.1, 0.0, 0.0)
    assert events == []
    _, events = run(EventOptions(smooth=0, begin_after=0, background=("none", "jump")), 0.9)
    assert [item.label for item in events] == ["wave"]


def test_smoothing_is_an_exponential_average_over_time():
    """Whatever the frame rate: a step from 0 to 0.9 passes 0.6 after `smooth * ln 3` seconds."""
    for rate in (10, 100):
        finder = EventFinder(LABELS, EventOptions(smooth=0.5, begin_after=0, begin_above=0.6))
        finder.see(made_answer(0, "wave", 0.0))
        times = (number / rate for number in range(1, 10 * rate))
        begin = next(seconds for seconds in times if finder.see(made_answer(seconds, "wave")))
        assert 0 <= begin - 0.5 * math.log(3) <= 1 / rate


def test_smoothing_removes_a_single_high_frame():
    options = EventOptions(smooth=0.5, begin_after=0, background=("none",))
    assert run(options, 0.0, 1.0, 0.0, 0.0)[1] == []
    assert run(replace(options, smooth=0), 0.0, 1.0, 0.0, 0.0)[1] != []


def test_the_json_line():
    _, events = run(SHARP, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1)
    began, ended = (json.loads(json.dumps(item.to_dict())) for item in events)
    assert (began["kind"], began["state"], began["end_ns"], began["seconds"]) == ("event", "began", None, None)
    assert (ended["state"], ended["end_ns"], ended["seconds"], ended["label"]) == ("ended", 300_000_000, 0.3, "wave")
    assert set(began) == set(ended)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"begin_above": 0}, "begin_above is 0"),
        ({"begin_above": 1.1}, "begin_above is 1.1"),
        ({"end_below": math.nan}, "end_below is nan"),
        ({"end_below": 0.7}, "Lower end_below"),
        ({"begin_after": -1}, "begin_after is -1"),
        ({"smooth": math.inf}, "smooth is inf"),
        ({"end_gap": 0}, "end_gap is 0"),
    ],
)
def test_options_that_are_refused(options, named):
    with pytest.raises(FlowlessError, match=named):
        EventOptions(**options)


def test_an_unknown_background_is_refused():
    with pytest.raises(FlowlessError, match=r"background is 'wav', which is no label.*: wave"):
        EventFinder(LABELS, EventOptions(background=("wav",)))
