from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.deliver.retry import after_delay, after_refusal, next_attempt
from dicom_node.settings import DeliverySettings

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WEEK_S = 7 * 86400.0
POLICY = DeliverySettings()
jitters = st.floats(0, 1)


@given(attempts=st.integers(1, 10_000), elapsed_s=st.floats(0, WEEK_S - 1), jitter=jitters)
def test_wait_is_between_half_and_full_back_off_and_never_passes_the_deadline(attempts, elapsed_s, jitter):
    now = START + timedelta(seconds=elapsed_s)
    following = after_delay(
        attempts=attempts, waited_s=elapsed_s, now=now, policy=POLICY, give_up_after_s=WEEK_S, jitter=jitter
    )
    deadline = START + timedelta(seconds=WEEK_S)
    back_off = timedelta(seconds=min(900.0, 30.0 * 2 ** min(attempts - 1, 40)))
    assert following is not None
    tick = timedelta(microseconds=1)  # of the clock
    assert now <= following <= deadline + tick
    assert following - now <= back_off + tick
    assert following - now >= back_off / 2 - tick or abs(following - deadline) <= tick


@given(jitter=jitters, give_up_after_s=st.floats(60, 3 * 86400))
def test_outage_is_waited_out_until_the_deadline_and_then_given_up_once(jitter, give_up_after_s):
    now, attempts = START, 1
    while True:
        following = after_delay(
            attempts=attempts,
            waited_s=(now - START).total_seconds(),
            now=now,
            policy=POLICY,
            give_up_after_s=give_up_after_s,
            jitter=jitter,
        )
        if following is None:
            break
        now, attempts = following, attempts + 1
    assert abs(now - START - timedelta(seconds=give_up_after_s)) <= timedelta(milliseconds=1)
    assert attempts < 2 * give_up_after_s / 450 + 20  # no retry storm: at most one attempt per half of the longest wait


def test_wait_doubles_from_the_first_to_the_longest():
    waits = [
        after_delay(attempts=n, waited_s=0.0, now=START, policy=POLICY, give_up_after_s=WEEK_S, jitter=0.0) - START
        for n in range(1, 8)
    ]
    assert [wait.total_seconds() for wait in waits] == [30, 60, 120, 240, 480, 900, 900]


@given(refused_attempts=st.integers(1, 20), jitter=jitters)
def test_refused_object_is_offered_as_often_as_configured_within_an_hour(refused_attempts, jitter):
    policy = DeliverySettings(refused_attempts=refused_attempts)
    now, offers = START, 1
    while (following := after_refusal(refusals=offers, now=now, policy=policy, jitter=jitter)) is not None:
        assert following > now
        now, offers = following, offers + 1
    assert offers == refused_attempts
    assert now - START <= timedelta(hours=1, seconds=1)
    if refused_attempts > 1:
        assert now - START >= timedelta(minutes=53)


def test_default_three_offers_are_half_an_hour_apart():
    assert after_refusal(refusals=1, now=START, policy=POLICY, jitter=0.0) == START + timedelta(minutes=30)
    assert after_refusal(refusals=3, now=START, policy=POLICY, jitter=0.0) is None


@pytest.mark.parametrize(("count", "jitter"), [(0, 0.5), (1, -0.1), (1, 1.1)])
def test_invalid_arguments_are_refused(count, jitter):
    with pytest.raises(ValueError, match="expected"):
        after_refusal(refusals=count, now=START, policy=POLICY, jitter=jitter)


def test_refusal_after_days_of_outage_still_gets_three_offers():
    now = START + timedelta(days=3)
    facts = {"attempts": 400, "waited_s": 3 * 86400.0, "now": now, "policy": POLICY, "jitter": 0.0}
    assert next_attempt(refused=True, refusals=1, give_up_after_s=WEEK_S, **facts) == now + timedelta(minutes=30)
    assert next_attempt(refused=False, refusals=1, give_up_after_s=WEEK_S, **facts) == now + timedelta(minutes=15)
