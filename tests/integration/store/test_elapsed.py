"""The elapsed time of a node: no clock that is set changes it, and it survives restarts of process and machine."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from dicom_node.store.clock import Moment
from dicom_node.store.elapsed import _KEPT_EVERY_S, MOST_OFF_S
from dicom_node.store.ledger import Ledger
from dicom_node.store.schema import boot
from dicom_node.store.spool import Spool
from tests.integration.store.rows import NOW

YEARS = timedelta(days=3650)


def read(ledger, uptime_s, at=NOW, boot_id="first"):
    return ledger.elapsed.read(Moment(at, boot_id, uptime_s))


def test_it_is_the_uptime_whatever_the_clock_says(ledger):
    assert read(ledger, 1000.0) == 0.0
    assert read(ledger, 1010.0, NOW + YEARS) == 10.0
    assert read(ledger, 1100.0, NOW - YEARS) == 100.0
    assert read(ledger, 1101.0) == 101.0


@pytest.mark.parametrize(
    ("off", "counted_s"),
    [(timedelta(minutes=5), 300.0), (timedelta(days=2), MOST_OFF_S), (YEARS, MOST_OFF_S), (-YEARS, 0.0)],
)
def test_of_the_time_that_the_machine_was_off_a_part_counts(ledger, off, counted_s):
    read(ledger, 1000.0)
    assert read(ledger, 1100.0) == 100.0
    assert read(ledger, 3.0, NOW + off, "second") == 100.0 + counted_s
    assert read(ledger, 10.0, NOW, "second") == 107.0 + counted_s


def test_what_passed_since_the_last_reading_that_was_kept_is_not_invented(ledger):
    read(ledger, 1000.0)
    assert read(ledger, 1020.0) == 20.0, "not kept yet"
    assert read(ledger, 1.0, NOW, "second") == 0.0


def test_two_machines_do_not_add_up_their_times(ledger):
    for second in range(0, 1000, 100):
        at = NOW + timedelta(seconds=second)
        assert read(ledger, 50.0 + second, at, "first") == float(second)
        assert read(ledger, 90000.0 + second, at, "second") == float(second)


@pytest.fixture(scope="module")
def one_ledger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elapsed")
    opened = Ledger(f"sqlite:///{folder / 'ledger.sqlite3'}", Spool(folder / "spool"))
    yield opened
    opened.close()


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.booleans(), st.floats(0, 1e6), st.datetimes(timezones=st.just(NOW.tzinfo))),
        min_size=1,
        max_size=12,
    )
)
def test_it_never_runs_ahead_and_goes_back_only_by_what_was_not_kept(one_ledger, history):
    with one_ledger.database.write() as db:
        db.execute(delete(boot))
    boots, uptime_s, real_s, before = 0, 0.0, 0.0, 0.0
    for has_restarted, passed_s, clock in history:
        boots, uptime_s = (boots + 1, 0.0) if has_restarted else (boots, uptime_s + passed_s)
        real_s += passed_s
        now_s = read(one_ledger, uptime_s, clock, str(boots))
        not_kept_s = _KEPT_EVERY_S if has_restarted else 0.0
        assert before - not_kept_s <= now_s <= real_s + boots * MOST_OFF_S + 1e-6
        before = now_s
