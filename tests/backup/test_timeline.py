"""Which moments a recording can bring back: every one is exact or refused."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cachekeep.backup.timeline import APART_NS, Base, Segment, Timeline

S = 1_000_000_000


def segment(
    number: int, offset: int, pairs: list[tuple[float, int]], *, history: str = "a", before: str = "", why: str = ""
) -> Segment:
    """``pairs``: seconds and offsets."""
    times, offsets = [int(t * S) for t, _ in pairs], [o for _, o in pairs]
    return Segment(number, history, offset, offsets[-1] if offsets else offset, before, why, times, offsets)


def spans(timeline: Timeline) -> list[tuple[float, float, str]]:
    return [(s.begin / S, s.end / S, s.why) for s in timeline.spans()]


def test_a_moment_is_brought_back_by_the_last_base_before_it_and_what_followed() -> None:
    one, two = segment(2, 100, [(1, 100), (2, 150)], why="on"), segment(4, 150, [(2, 150), (3, 200), (4, 250)])
    timeline = Timeline((Base(1, "a", 100), Base(3, "a", 200)), (one, two))
    assert spans(timeline) == [(1, 4, "on")]
    early, late = timeline.way(int(2.5 * S)), timeline.way(int(3.5 * S))
    assert early is not None
    assert late is not None
    assert (early.base.number, early.segments, early.offset) == (1, (one, two), 150)
    assert (late.base.number, late.segments, late.offset) == (3, (two,), 200)
    assert timeline.way(int(0.9 * S)) is None
    assert timeline.way(int(4.1 * S)) is None


def test_a_history_that_goes_on_under_another_name_is_followed_and_the_time_between_is_a_gap() -> None:
    one = segment(2, 100, [(1, 100), (2, 150)], why="on")
    two = segment(3, 150, [(3, 160), (4, 170)], history="b", before="a", why="the connection was lost")
    timeline = Timeline((Base(1, "a", 100),), (one, two))
    assert spans(timeline) == [(1, 2, "on"), (3, 4, "the connection was lost")]
    way = timeline.way(4 * S)
    assert way is not None
    assert (way.segments, way.offset) == ((one, two), 170)
    assert timeline.way(int(2.5 * S)) is None


def test_bytes_that_no_base_leads_to_bring_nothing_back() -> None:
    hole = segment(3, 160, [(3, 160), (4, 170)], why="pruned")
    timeline = Timeline((Base(1, "a", 100), Base(9, "x", 165)), (segment(2, 100, [(1, 100), (2, 150)], why="on"), hole))
    assert spans(timeline) == [(1, 2, "on")]
    assert timeline.way(4 * S) is None


def test_a_base_within_a_segment_brings_back_what_is_behind_it() -> None:
    timeline = Timeline((Base(4, "a", 165),), (segment(3, 160, [(3, 160), (4, 165), (5, 170)], why="pruned"),))
    assert spans(timeline) == [(4, 5, "pruned")]
    assert timeline.way(int(3.5 * S)) is None


def test_silence_is_a_gap() -> None:
    far = APART_NS / S + 1
    timeline = Timeline((Base(1, "a", 0),), (segment(2, 0, [(1, 0), (2, 5), (2 + far, 9), (3 + far, 9)], why="on"),))
    assert spans(timeline) == [(1, 2, "on"), (2 + far, 3 + far, "nothing was heard of the primary's host")]


@st.composite
def recorded(draw: st.DrawFn) -> Timeline:
    bases: list[Base] = []
    segments: list[Segment] = []
    number, offset, time, history = 0, 0, 0.0, "h0"
    for _ in range(draw(st.integers(1, 8))):
        event = draw(st.sampled_from(["rotated", "resumed", "renamed", "anew", "silence"]))
        before, why = "", "" if event == "rotated" and segments else event
        if event == "renamed" and segments:
            before, history = history, f"h{number}"
        if event == "anew" or not segments:
            number += 1
            history, offset = f"n{number}", draw(st.integers(0, 50))
            bases.append(Base(number, history, offset))
        time += {"rotated": 0.0, "silence": 9.0}.get(event, 1.0)
        number += 1
        pairs, begin = [], offset
        for _ in range(draw(st.integers(0, 5))):
            time, offset = time + draw(st.sampled_from([0.5, 1.0, 8.0])), offset + draw(st.integers(0, 9))
            pairs.append((time, offset))
        segments.append(segment(number, begin, pairs, history=history, before=before, why=why))
        if draw(st.booleans()):
            number += 1
            bases.append(Base(number, history, draw(st.integers(begin, offset))))
    return Timeline(tuple(bases), tuple(segments))


@given(recorded(), st.floats(0, 60))
@settings(max_examples=300, deadline=None)
def test_nothing_is_removed_that_a_moment_needs_which_could_be_had(timeline: Timeline, since: float) -> None:
    since_ns = int(since * S)
    bases, segments = timeline.unneeded(since_ns)
    left = Timeline(
        tuple(b for b in timeline.bases if b.number not in bases), tuple(s for s in timeline.segments if s.number not in segments)
    )
    for at_ns in {since_ns, *(t for s in timeline.segments for t in s.times if t >= since_ns)}:
        before, after = timeline.way(at_ns), left.way(at_ns)
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            assert (before.base, before.offset) == (after.base, after.offset)
