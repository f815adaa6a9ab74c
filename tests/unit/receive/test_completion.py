"""Is the series complete? The table of evidence, and properties that hold for any evidence."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.receive.completion import decide
from dicom_node.settings import CompletionSettings
from dicom_node.types import SeriesEvidence, Stretch

START = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = CompletionSettings()


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def evidence(positions, last=0.0, **changes) -> SeriesEvidence:
    return SeriesEvidence(
        instance_count=len(positions),
        first_arrival=START,
        last_arrival=after(last),
        positions_mm=tuple(positions),
        orientations=1,
        **{"open_associations": 0, **changes},
    )


def brought(*parts: tuple[float, float, float, float]) -> tuple[Stretch, ...]:
    """Associations: seconds from the start to opening and closing, lowest and highest position in mm."""
    return tuple(Stretch(after(opened), after(closed), lowest, highest) for opened, closed, lowest, highest in parts)


REGULAR = evidence([2.5 * k for k in range(40)])
GROWING = replace(REGULAR, stretches=brought((-20, -19, 0, 47.5), (-10, 0, 50, 97.5)))
WAITS = {
    "regular and released": (REGULAR, 5),
    "regular in any order, from above": (evidence([100.0, 97.5, 102.5, 95.0]), 5),
    "rounding of 1 %": (evidence([0, 0.62, 1.25, 1.87, 2.5]), 5),
    "rounded to 0.1 mm": (evidence([0, 0.6, 1.2, 1.9, 2.5, 3.1]), 5),
    "one slice missing, rounded to 0.1 mm": (evidence([0, 0.6, 1.9, 2.5, 3.1]), 60),
    "association still open": (replace(REGULAR, open_associations=1), 60),
    "association broken off after a regular part": (replace(REGULAR, aborted_associations=1), 60),
    "an instance refused after a regular part": (replace(REGULAR, refused_instances=1), 60),
    "multi-frame, another refused": (evidence([None], multi_frame=True, refused_instances=1), 60),
    "count reached, one refused": (evidence([0, 2, 9], expected_count=3, refused_instances=1), 0),
    "multi-frame, association broken off": (evidence([None], multi_frame=True, aborted_associations=1), 60),
    "one slice missing": (evidence([0, 2, 4, 8, 10]), 60),
    "two at one position": (evidence([0, 2, 4, 4, 6]), 60),
    "all at one position": (evidence([4, 4, 4]), 60),
    "one without position": (evidence([0, 2, None, 6]), 60),
    "two orientations": (replace(REGULAR, orientations=2), 60),
    "one slice": (evidence([0]), 60),
    "multi-frame": (evidence([None], multi_frame=True), 5),
    "count reached": (evidence([0, 2, 9], expected_count=3), 0),
    "count reached while the association is open": (replace(REGULAR, open_associations=1, expected_count=40), 0),
    "regular but fewer than the sender counts": (replace(REGULAR, expected_count=41), 60),
    "continued upwards by the last association": (GROWING, 60),
    "continued downwards": (replace(REGULAR, stretches=brought((-20, -19, 50, 97.5), (-10, 0, 0, 47.5))), 60),
    "continued by one slice": (replace(REGULAR, stretches=brought((-20, -19, 0, 95), (-10, 0, 97.5, 97.5))), 60),
    "continued, but not by the last association": (
        replace(REGULAR, stretches=brought((-9, -8, 0, 30), (-6, -5, 80, 97.5), (-3, 0, 32.5, 77.5))),
        5,
    ),
    "from one association": (replace(REGULAR, stretches=brought((-20, 0, 0, 97.5))), 5),
    "side by side on two associations": (
        replace(REGULAR, stretches=brought((-20, 0, 0, 47.5), (-19, -1, 50, 97.5))),
        5,
    ),
    "interleaved on two associations": (replace(REGULAR, stretches=brought((-20, -10, 0, 95), (-9, 0, 2.5, 97.5))), 5),
    "continued until the count was reached": (replace(GROWING, expected_count=40), 0),
    "sender known to pause": (replace(REGULAR, learned_pause_s=10), 15),
    "sender known to pause briefly": (replace(REGULAR, learned_pause_s=1), 5),
    "sender known to pause for longer than the longest wait": (replace(REGULAR, learned_pause_s=90), 60),
    "sender known to pause, count reached": (replace(REGULAR, learned_pause_s=90, expected_count=40), 0),
    "sender known to pause, one slice missing": (replace(evidence([0, 2, 4, 8, 10]), learned_pause_s=10), 60),
    "multi-frame but fewer than the sender counts": (evidence([None], multi_frame=True, expected_count=2), 60),
}


@pytest.mark.parametrize(("seen", "quiet_s"), WAITS.values(), ids=WAITS)
def test_wait_depends_on_the_evidence(seen, quiet_s):
    assert decide(seen, after(quiet_s), POLICY).complete
    if quiet_s:
        early = decide(seen, after(quiet_s - 0.001), POLICY)
        assert not early.complete
        assert early.look_again_at == after(quiet_s)


def test_hard_limit_ends_a_wait_prolonged_by_new_arrivals():
    seen = evidence([0, 7, 9], last=7190)
    waiting = decide(seen, after(7199), POLICY)
    assert not waiting.complete
    assert waiting.look_again_at == after(7200)
    ended = decide(seen, after(7200), POLICY)
    assert ended.complete
    assert "7200 s" in ended.reason
    partial = decide(replace(seen, expected_count=41), after(7200), POLICY)
    assert partial.reason.startswith("3 of 41")


def test_only_a_wait_ended_by_the_hard_limit_is_marked_as_cut_short():
    assert decide(evidence([0, 7, 9], last=7190), after(7200), POLICY).is_cut_short
    assert decide(replace(REGULAR, open_associations=1, last_arrival=after(7190)), after(7200), POLICY).is_cut_short
    assert decide(evidence([0, 7, 9], last=7190, expected_count=4), after(7200), POLICY).is_cut_short
    assert not decide(evidence([0, 7, 9], last=7000), after(7200), POLICY).is_cut_short
    reached = decide(evidence([0, 7, 9], last=7200, expected_count=3), after(7200), POLICY)
    assert not reached.is_cut_short


def test_results_of_a_possible_first_part_are_held_back():
    verdict = decide(replace(REGULAR, last_arrival=after(2)), after(7), POLICY)
    assert verdict.complete
    assert verdict.deliver_from == after(17)


@pytest.mark.parametrize(
    "seen",
    [replace(REGULAR, expected_count=40), GROWING, evidence([0, 2, 9]), replace(REGULAR, learned_pause_s=20)],
    ids=["counted", "waited for further parts", "waited for want of evidence", "waited as the sender is known"],
)
def test_nothing_is_held_back_after_a_long_wait_or_with_a_known_count(seen):
    verdict = decide(seen, after(60), POLICY)
    assert verdict.complete
    assert verdict.deliver_from is None


def test_longest_pause_before_a_continuation_is_remembered():
    four_parts = brought((0, 1, 0, 10), (9, 10, 12, 20), (22, 23, 22, 30), (30, 31, -9, -2))
    assert decide(replace(REGULAR, stretches=four_parts), after(60), POLICY).longest_pause_s == 12
    filled = brought((0, 1, 0, 30), (22, 23, 12, 14))
    assert decide(replace(REGULAR, stretches=filled), after(60), POLICY).longest_pause_s == 0


def test_reasons_contain_numbers():
    assert "40 of 41" in decide(replace(REGULAR, expected_count=41), after(60), POLICY).reason
    assert "40 instances, 2 refused" in decide(replace(REGULAR, refused_instances=2), after(60), POLICY).reason
    assert "3 of 3 instances reported by the sender, 2 refused" in (
        decide(evidence([0, 2, 9], expected_count=3, refused_instances=2), after(60), POLICY).reason
    )
    one = decide(evidence([None], multi_frame=True), after(60), POLICY).reason
    assert one.startswith("1 multi-frame instance, association released;")
    still_open = decide(evidence([0], open_associations=1), after(60), POLICY).reason
    assert still_open.startswith("1 instance, associations still open: 1;")
    assert "2.000 to 4.000 mm" in decide(evidence([0, 2, 4, 8]), after(60), POLICY).reason


def test_clock_set_back_completes_nothing():
    assert not decide(replace(REGULAR, expected_count=40), after(-3600), POLICY).complete


times = st.floats(0, 10_000)
places = st.floats(-2000, 2000)
stretches = st.lists(
    st.builds(
        lambda opened, lasted, low, high: Stretch(
            after(opened), after(opened + lasted), min(low, high), max(low, high)
        ),
        times,
        st.floats(0, 100),
        places,
        places,
    ),
    max_size=5,
).map(lambda found: tuple(sorted(found, key=lambda each: each.opened_at)))
any_evidence = st.builds(
    SeriesEvidence,
    instance_count=st.integers(1, 12),
    first_arrival=st.just(START),
    last_arrival=times.map(after),
    open_associations=st.integers(0, 2),
    positions_mm=st.lists(st.none() | places, min_size=1, max_size=12).map(tuple)
    | st.integers(2, 12).map(lambda count: tuple(2.5 * k for k in range(count))),
    orientations=st.integers(0, 3),
    expected_count=st.none() | st.integers(1, 14),
    multi_frame=st.booleans(),
    aborted_associations=st.integers(0, 2),
    refused_instances=st.integers(0, 2),
    stretches=stretches,
    learned_pause_s=times,
)


@given(any_evidence, times, times)
def test_more_silence_never_makes_a_complete_series_incomplete(seen, now, later):
    if decide(seen, after(now), POLICY).complete:
        assert decide(seen, after(now + later), POLICY).complete


@given(any_evidence, times, times)
def test_knowledge_about_a_sender_never_shortens_its_waits(seen, now, pause_s):
    if decide(replace(seen, learned_pause_s=pause_s), after(now), POLICY).complete:
        assert decide(seen, after(now), POLICY).complete


seconds = st.floats(0, 200)
any_policy = st.builds(CompletionSettings, regular_quiet_s=seconds, otherwise_quiet_s=seconds)
doubts = st.sampled_from(["open_associations", "aborted_associations", "refused_instances"])


@given(any_evidence, times, any_policy, doubts)
def test_evidence_against_completeness_never_shortens_a_wait(seen, now, policy, doubt):
    if decide(replace(seen, **{doubt: 1}), after(now), policy).complete:
        assert decide(replace(seen, **{doubt: 0}), after(now), policy).complete


@pytest.mark.parametrize(
    "seen",
    [replace(REGULAR, refused_instances=1), evidence([0, 2, 9]), replace(REGULAR, expected_count=41), GROWING],
    ids=["refused", "irregular", "fewer than counted", "growing"],
)
def test_long_wait_for_regular_series_applies_to_all_others(seen):
    policy = CompletionSettings(regular_quiet_s=90)
    assert not decide(seen, after(89.9), policy).complete
    assert decide(seen, after(90), policy).complete


@given(any_evidence, times)
def test_results_are_held_back_no_longer_than_the_longest_wait(seen, now):
    verdict = decide(seen, after(now), POLICY)
    if verdict.deliver_from is not None:
        assert verdict.complete
        assert verdict.deliver_from <= seen.last_arrival + timedelta(seconds=POLICY.otherwise_quiet_s)


@given(any_evidence, times)
def test_look_again_at_is_the_time_of_completion(seen, now):
    verdict = decide(seen, after(now), POLICY)
    if verdict.complete:
        assert verdict.look_again_at is None
    else:
        assert verdict.look_again_at is not None
        assert verdict.look_again_at > after(now)
        assert not decide(seen, verdict.look_again_at - timedelta(microseconds=1), POLICY).complete
        assert decide(seen, verdict.look_again_at, POLICY).complete


@given(any_evidence)
def test_the_hard_limit_always_holds(seen):
    assert decide(seen, after(POLICY.hard_limit_s), POLICY).complete


@given(st.integers(2, 300), st.floats(0.3, 10), st.floats(-1000, 1000), st.randoms(use_true_random=False))
def test_order_of_arrival_has_no_influence(count, spacing, start, random):
    positions = [start + spacing * k for k in range(count)]
    random.shuffle(positions)
    assert decide(evidence(positions), after(5), POLICY).complete


@given(st.integers(4, 300), st.floats(0.3, 10), st.data())
def test_a_missing_inner_slice_is_never_regular(count, spacing, data):
    positions = [spacing * k for k in range(count)]
    del positions[data.draw(st.integers(1, count - 2))]
    assert not decide(evidence(positions), after(5), POLICY).complete
