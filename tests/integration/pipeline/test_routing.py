"""What becomes of complete series: jobs, refusals, and those that nobody can read."""

from __future__ import annotations

import pytest
import structlog

from dicom_node.pipeline.notices import Notices
from dicom_node.pipeline.results import Installation, ResultStore
from dicom_node.pipeline.routing import Routing
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.store.clock import now_utc
from dicom_node.store.states import JobState
from dicom_node.types import Completion
from tests.support.received_series import receive

NODE = "destinations: {pacs: {host: 127.0.0.1, port: 104, ae_title: PACS}}\nmodels: {tissue: {kind: tissue}}\n"
RUN_ALL = "rules: [{name: all, model: tissue, when: []}]"
REFUSE_ALL = "rules: [{name: none, refuse: no CT today, when: [], destinations: [{to: pacs, notice: true}]}]"


@pytest.fixture
def rules(tmp_path):
    def read(text):
        (tmp_path / "node.yaml").write_text(NODE)
        (tmp_path / "rules.yaml").write_text(text)
        settings = load_settings(tmp_path / "node.yaml")
        return load_rules(settings.rules_file, settings)

    return read


@pytest.fixture
def notices(ledger, spool):
    return Notices(spool, ResultStore(ledger.jobs, ledger.results, spool, Installation("node-1", "2.25.1")))


def receive_and_complete(spool, ledger, folder, hu):
    uid = receive(spool, ledger, folder, hu)
    for revision in ledger.arrivals.due_revisions(now_utc().replace(year=now_utc().year + 1)):
        assert ledger.arrivals.complete(revision, Completion(complete=True, reason="test"), now_utc())
    return uid


def jobs(ledger):
    return {job.series_instance_uid: (job.state, job.reason) for job in ledger.overview.jobs(9)}


def test_a_series_that_cannot_be_read_is_rejected_and_the_others_are_routed(ledger, spool, rules, notices, tmp_path):
    broken = receive_and_complete(spool, ledger, tmp_path / "a", 1)
    (revision,) = ledger.routing.due_revisions()
    for name in revision.spool_names:
        spool.path(name).write_bytes(b"Doe^John")
    whole = receive_and_complete(spool, ledger, tmp_path / "b", 2)
    Routing(ledger.routing, spool, rules(RUN_ALL), notices).route_complete()
    assert jobs(ledger)[whole] == (JobState.QUEUED, "")
    state, reason = jobs(ledger)[broken]
    assert state is JobState.REJECTED
    assert reason
    assert "Doe" not in reason
    assert ledger.routing.due_revisions() == ()


def test_a_missing_file_is_a_reason_too(ledger, spool, rules, notices, tmp_path):
    uid = receive_and_complete(spool, ledger, tmp_path / "a", 1)
    (revision,) = ledger.routing.due_revisions()
    spool.delete(revision.spool_names[0])
    Routing(ledger.routing, spool, rules(RUN_ALL), notices).route_complete()
    assert jobs(ledger)[uid][0] is JobState.REJECTED


def test_who_routes_second_leaves_no_notice_behind(ledger, spool, rules, notices, tmp_path, result_files):
    receive_and_complete(spool, ledger, tmp_path / "a", 1)
    received = set(result_files())
    refusing = rules(REFUSE_ALL)

    class Overtaken(Notices):
        """While this process writes its notice, another one routes the series."""

        def write(self, *asked):
            Routing(ledger.routing, spool, refusing, notices).route_complete()
            return super().write(*asked)

    overtaken = Overtaken(spool, ResultStore(ledger.jobs, ledger.results, spool, Installation("node-1", "2.25.1")))
    with structlog.testing.capture_logs() as log:
        Routing(ledger.routing, spool, refusing, overtaken).route_complete()
    assert [line["jobs"] for line in log if line["event"] == "series.routed"] == [[1], []]
    (job,) = ledger.overview.jobs(9)
    (notice,) = ledger.overview.job(job.id).results
    assert set(result_files()) - received == {spool.path(notice.spool_name).name}
