"""What happens to complete series: jobs, refusals, and series that cannot be read."""

from __future__ import annotations

import errno
from dataclasses import replace
from types import SimpleNamespace

import pytest
import structlog

from dicom_node.pipeline import routing
from dicom_node.pipeline.notices import Notices
from dicom_node.pipeline.results import Installation, ResultStore
from dicom_node.pipeline.routing import Routing
from dicom_node.reading.reader import ImageReader
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.store.clock import now_utc
from dicom_node.store.states import JobState
from dicom_node.types import Completion
from tests.support.received_series import as_received, flip_a_bit, receive

NODE = "destinations: {pacs: {host: 127.0.0.1, port: 104, ae_title: PACS}}\nmodels: {tissue: {kind: tissue}}\n"
RUN_ALL = "rules: [{name: all, model: tissue, when: []}]"
REFUSE_ALL = "rules: [{name: none, refuse: no CT today, when: [], destinations: [{to: pacs, notice: true}]}]"

ATTEMPTS = 2
CUT_SEQUENCE = (
    b"\x08\x00\x05\x11SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff\x10\x00\x10\x00PN\x08\x00Doe^John\xfe"
)


@pytest.fixture(autouse=True)
def _no_wait_ends_by_itself(monkeypatch):
    monkeypatch.setattr(routing, "time", SimpleNamespace(monotonic=lambda: 0.0))


@pytest.fixture
def rules(tmp_path):
    def read(text):
        (tmp_path / "node.yaml").write_text(NODE)
        (tmp_path / "rules.yaml").write_text(text)
        settings = load_settings(tmp_path / "node.yaml")
        return load_rules(settings.rules_file, settings)

    return read


@pytest.fixture
def notices(ledger, spool, reader):
    return Notices(spool, reader, ResultStore(ledger.jobs, ledger.results, spool, Installation("node-1", "2.25.1")))


def receive_and_complete(spool, ledger, folder, hu):
    uid = receive(spool, ledger, folder, hu)
    for revision in ledger.arrivals.due_revisions(now_utc().replace(year=now_utc().year + 1)):
        assert ledger.arrivals.complete(revision, Completion(complete=True, reason="test"), now_utc())
    return uid


def jobs(ledger):
    return {job.series_instance_uid: (job.state, job.reason) for job in ledger.overview.jobs(9)}


def test_unreadable_series_is_rejected_and_the_others_are_routed(ledger, spool, reader, rules, notices, tmp_path):
    broken = receive_and_complete(spool, ledger, tmp_path / "a", 1)
    (revision,) = ledger.routing.due_revisions()
    for name in revision.spool_names:
        as_received(spool, ledger, name, CUT_SEQUENCE)
    whole = receive_and_complete(spool, ledger, tmp_path / "b", 2)
    Routing(ledger.routing, spool, reader, rules(RUN_ALL), notices, ATTEMPTS).route_complete()
    assert jobs(ledger)[whole] == (JobState.QUEUED, "")
    state, reason = jobs(ledger)[broken]
    assert state is JobState.REJECTED
    assert reason
    assert "Doe" not in reason
    assert ledger.routing.due_revisions() == ()


def test_file_that_is_away_for_a_moment_is_waited_for(ledger, spool, reader, rules, notices, tmp_path):
    uid = receive_and_complete(spool, ledger, tmp_path / "a", 1)
    (revision,) = ledger.routing.due_revisions()
    away, content = spool.path(revision.spool_names[0]), spool.path(revision.spool_names[0]).read_bytes()
    away.unlink()
    other = receive_and_complete(spool, ledger, tmp_path / "b", 2)
    room = Routing(ledger.routing, spool, reader, rules(RUN_ALL), notices, ATTEMPTS)
    with structlog.testing.capture_logs() as log:
        for _ in range(ATTEMPTS + 2):
            room.route_complete()
            assert jobs(ledger) == {other: (JobState.QUEUED, "")}
    tried = [(line["attempt"], line["retry_in_s"]) for line in log if line["event"] == "series.not_routed"]
    assert tried == [(1, 5)], "it waits before it looks again"
    away.write_bytes(content)
    is_over(room)
    room.route_complete()
    assert jobs(ledger)[uid] == (JobState.QUEUED, "")


def test_refusal_waits_while_there_is_no_space_for_its_notice(
    ledger, spool, reader, rules, notices, tmp_path, monkeypatch
):
    series = [receive_and_complete(spool, ledger, tmp_path / name, 1) for name in "ab"]
    room = Routing(ledger.routing, spool, reader, rules(REFUSE_ALL), notices, ATTEMPTS)
    with monkeypatch.context() as full, structlog.testing.capture_logs() as log:
        full.setattr(spool.disk, "write", no_space)
        room.route_complete()
    assert jobs(ledger) == {}
    assert [line["retry_in_s"] for line in log if line["event"] == "series.not_routed"] == [5, 5], "each is looked at"
    is_over(room)
    room.route_complete()
    assert {uid: state for uid, (state, _) in jobs(ledger).items()} == dict.fromkeys(series, JobState.REJECTED)
    assert [len(ledger.overview.job(job.id).deliveries) for job in ledger.overview.jobs(9)] == [1, 1]


def no_space(*_):
    raise OSError(errno.ENOSPC, "")


def is_over(room):
    """The waits of all series are over."""
    room._waiting = {number: replace(wait, until=0.0) for number, wait in room._waiting.items()}


def test_file_that_is_away_for_a_day_is_shown_and_can_be_tried_again(
    ledger, spool, reader, rules, notices, tmp_path, monkeypatch
):
    monkeypatch.setattr(routing, "MOST_WAITS", 2)
    uid = receive_and_complete(spool, ledger, tmp_path / "a", 1)
    (revision,) = ledger.routing.due_revisions()
    away, content = spool.path(revision.spool_names[0]), spool.path(revision.spool_names[0]).read_bytes()
    away.unlink()
    room = Routing(ledger.routing, spool, reader, rules(RUN_ALL), notices, ATTEMPTS)
    for _ in range(3):
        assert jobs(ledger) == {}
        room.route_complete()
        is_over(room)
    assert jobs(ledger)[uid] == (JobState.FAILED, f"spool: reading {away.name}: ENOENT; given up after a day")
    assert ledger.overview.counts().instances["damaged"] == 1, "it may be sent again"
    away.write_bytes(content)
    assert ledger.jobs.retry(1, now_utc()) == "the series is routed again"
    room.route_complete()
    assert ledger.overview.jobs(1)[0].state is JobState.QUEUED


def test_series_whose_stored_bytes_changed_is_shown_and_the_others_are_routed(
    ledger, spool, reader, rules, notices, tmp_path
):
    changed = receive_and_complete(spool, ledger, tmp_path / "a", 1)
    (revision,) = ledger.routing.due_revisions()
    flip_a_bit(spool.path(revision.spool_names[2]))
    other = receive_and_complete(spool, ledger, tmp_path / "b", 2)
    Routing(ledger.routing, spool, reader, rules(RUN_ALL), notices, ATTEMPTS).route_complete()
    assert jobs(ledger)[other] == (JobState.QUEUED, "")
    state, reason = jobs(ledger)[changed]
    assert state is JobState.FAILED
    assert reason.startswith("the stored bytes of 1 of 4 images changed on the disk")


def test_series_that_fails_unexpectedly_is_shown_and_the_others_are_routed(
    ledger, spool, reader, rules, notices, tmp_path
):
    odd = receive_and_complete(spool, ledger, tmp_path / "a", 1)

    class Failing(type(ledger.routing)):
        def content_already_routed(self, revision):
            if revision.series_instance_uid == odd:
                raise ValueError("Doe^John")
            return super().content_already_routed(revision)

    room = Routing(Failing(ledger.database), spool, reader, rules(RUN_ALL), notices, ATTEMPTS)
    whole = receive_and_complete(spool, ledger, tmp_path / "b", 2)
    with structlog.testing.capture_logs() as log:
        for _ in range(3):
            room.route_complete()
        assert jobs(ledger) == {whole: (JobState.QUEUED, "")}
        room._waiting.clear()  # the pause is over
        room.route_complete()
    assert jobs(ledger)[odd] == (JobState.FAILED, "unexpected error (ValueError): see the log")
    assert [line["attempt"] for line in log if line["event"] == "series.routing_crashed"] == [1, 2]


def test_second_process_to_route_a_series_leaves_no_notice_behind(
    ledger, spool, reader, rules, notices, tmp_path, result_files
):
    receive_and_complete(spool, ledger, tmp_path / "a", 1)
    received = set(result_files())
    refusing = rules(REFUSE_ALL)

    class Overtaken(Notices):
        """While this process writes its notice, another process routes the series."""

        def write(self, *asked):
            Routing(ledger.routing, spool, reader, refusing, notices, ATTEMPTS).route_complete()
            return super().write(*asked)

    overtaken = Overtaken(
        spool, reader, ResultStore(ledger.jobs, ledger.results, spool, Installation("node-1", "2.25.1"))
    )
    with structlog.testing.capture_logs() as log:
        Routing(ledger.routing, spool, reader, refusing, overtaken, ATTEMPTS).route_complete()
    assert [line["jobs"] for line in log if line["event"] == "series.routed"] == [[1], []]
    (job,) = ledger.overview.jobs(9)
    (notice,) = ledger.overview.job(job.id).results
    assert set(result_files()) - received == {spool.path(notice.spool_name).name}


def test_attempts_that_kill_their_process_are_limited(ledger, spool, reader, rules, notices, tmp_path):
    uid = receive_and_complete(spool, ledger, tmp_path / "a", 1)
    (revision,) = ledger.routing.due_revisions()
    assert [ledger.routing.count_attempt(revision) for _ in range(ATTEMPTS)] == [1, 2]
    good = receive_and_complete(spool, ledger, tmp_path / "b", 2)
    assert [due.series_instance_uid for due in ledger.routing.due_revisions()] == [good, uid]
    Routing(ledger.routing, spool, reader, rules(RUN_ALL), notices, ATTEMPTS).route_complete()
    assert jobs(ledger)[good] == (JobState.QUEUED, "")
    reason = "the node stopped unexpectedly each time it read the headers (attempts: 2)"
    assert jobs(ledger)[uid] == (JobState.REJECTED, reason)


def test_attempt_interrupted_by_a_stop_of_the_node_does_not_count(ledger, spool, reader, rules, notices, tmp_path):
    uid = receive_and_complete(spool, ledger, tmp_path / "a", 1)
    reader.close()
    for _ in range(ATTEMPTS + 1):
        Routing(ledger.routing, spool, reader, rules(RUN_ALL), notices, ATTEMPTS).route_complete()
    assert jobs(ledger) == {}
    with ImageReader() as another:
        Routing(ledger.routing, spool, another, rules(RUN_ALL), notices, ATTEMPTS).route_complete()
    assert jobs(ledger)[uid] == (JobState.QUEUED, "")
