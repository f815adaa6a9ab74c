"""The check of the invariant: silent about a real run, also while the node works, and every violation is found."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import threading
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage

from dicom_node.app.stores import open_store
from dicom_node.app.working import open_pipeline
from dicom_node.cli import main
from dicom_node.errors import Stopping
from dicom_node.operate.ledger_check import Kind, check_ledger
from dicom_node.receive.adopt import adopt_unclaimed
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.standard.part10 import HEAD_LENGTH, FileMeta, data_set_start
from dicom_node.store.clock import now_utc
from dicom_node.types import Completion, Decision
from dicom_node.work.pool import WorkerPool
from tests.integration.store.rows import WORKER
from tests.support.dicom_peers import scripted_pacs
from tests.support.received_series import receive, write_instance

PAGE = Path(__file__).parents[3] / "docs" / "operators" / "ledger-check.md"
SLICES = 4


def configure(folder, destinations, port=104):
    pacs = {"host": "127.0.0.1", "port": port, "ae_title": "PACS", "connect_timeout_s": 2, "response_timeout_s": 20}
    settings = {
        "node": {"data_folder": "data", "port": 0},
        "completion": {"regular_quiet_s": 0, "otherwise_quiet_s": 0},
        "models": {"tissue": {"kind": "tissue"}},
        "destinations": {"pacs": pacs},
    }
    rule = {"name": "all", "model": "tissue", "when": [], "destinations": destinations}
    (folder / "node.yaml").write_text(yaml.safe_dump(settings))
    (folder / "rules.yaml").write_text(yaml.safe_dump({"rules": [rule]}))
    return load_settings(folder / "node.yaml")


class Run:
    """The rooms of a node after the listener."""

    def __init__(self, settings, spool, ledger, workers):
        self.spool, self.ledger = spool, ledger
        self.pipeline = open_pipeline(settings, ledger, spool, load_rules(settings.rules_file, settings), workers)

    def route(self, folder, hu):
        uid = receive(self.spool, self.ledger, folder, hu)
        self.pipeline.completing.complete_due()
        self.pipeline.routing.route_complete()
        return uid

    def make(self, folder, hu):
        uid = self.route(folder, hu)
        assert self.pipeline.running.run_next_job()
        self.pipeline.delivering.deliver("pacs")
        return uid

    def claimed(self):
        now = now_utc()
        return self.ledger.jobs.claim(WORKER, now, now + timedelta(hours=1))


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """The folder of a node that was stopped when it had something in almost every state."""
    folder = tmp_path_factory.mktemp("run")
    with ExitStack() as opened:
        port, _ = opened.enter_context(scripted_pacs(classes=(SegmentationStorage, Comprehensive3DSRStorage)))
        settings = configure(folder, ["pacs"], port)
        spool, ledger = open_store(settings)
        opened.callback(ledger.close)
        workers = WorkerPool(settings.models, settings.work)
        opened.callback(workers.close)
        run = Run(settings, spool, ledger, workers)
        run.make(folder / "purged", 1)
        for _ in range(2):  # found settled, and found so again
            for name in ledger.retention.purge_due(0.0, 0.0, now_utc(), 100):
                spool.delete(name)
        run.make(folder / "delivered", 2)
        kept = Run(configure(folder, [], port), spool, ledger, workers)
        corrected = kept.make(folder / "kept", 3)
        away = Run(configure(folder, ["pacs"], port=1), spool, ledger, workers)
        away.make(folder / "owed", 4)
        for number, outcome in ((5, ledger.jobs.rejected), (6, ledger.jobs.failed)):
            run.route(folder / str(number), number)
            assert outcome(run.claimed(), "as a test", now_utc())
        run.route(folder / "running", 7)
        assert run.claimed()
        run.route(folder / "queued", 8)
        correct_one(spool, ledger, corrected)
    return folder


def correct_one(spool, ledger, series):
    """Receive the first image of the series again, with another pixel."""
    name = ledger.arrivals.current_instances(series)[0][0]
    whole = spool.path(name).read_bytes()
    start = data_set_start(whole[:HEAD_LENGTH])
    uid = ledger_value(ledger, "SELECT sop_instance_uid FROM instance WHERE spool_name = ?", name)
    meta = FileMeta("1.2.840.10008.5.1.4.1.1.2", uid, "1.2.840.10008.1.2.1")
    write_instance(spool, meta, whole[start:-1] + bytes([whole[-1] ^ 1]))
    adopt_unclaimed(spool, ledger.arrivals, ledger.retention.claims, older_than_s=-1)


def ledger_value(ledger, statement, *values):
    with ledger.database.read() as db:
        return db.exec_driver_sql(statement, values).scalar_one()


@dataclass
class Node:
    """A copy of the real run to break."""

    folder: Path

    @property
    def config(self):
        return self.folder / "node.yaml"

    def change(self, statement, *values, rows=1):
        with closing(sqlite3.connect(self.folder / "data" / "ledger.sqlite3")) as db:
            assert db.execute(statement, values).rowcount == rows
            db.commit()

    def value(self, statement, *values):
        with closing(sqlite3.connect(self.folder / "data" / "ledger.sqlite3")) as db:
            ((found,),) = db.execute(statement, values).fetchall()
        return found

    def file(self, statement):
        return self.folder / "data" / "spool" / self.value(statement)

    def check(self, **options):
        spool, ledger = open_store(load_settings(self.config))
        with closing(ledger):
            return check_ledger(ledger.consistency, spool, **{"unclaimed_age_s": -1} | options)


@pytest.fixture
def node(real_run, tmp_path):
    shutil.copytree(real_run, tmp_path / "node")
    return Node(tmp_path / "node")


@pytest.mark.parametrize("deep", [False, True])
def test_real_run_is_sound_and_counted_both_ways(node, deep):
    report = node.check(deep=deep)
    assert (report.examples, report.is_sound) == ((), True)
    assert report.states == {
        "instances": {"arriving": 1, "in a revision": 7 * SLICES - 1, "purged": SLICES, "replaced": 1},
        "series": {"has revisions": 8},
        "revisions": {"OPEN": 1, "ROUTED": 8},
        "jobs": dict.fromkeys(("DELIVERED",), 2)
        | dict.fromkeys(("ENCODED", "FAILED", "KEPT", "QUEUED", "REJECTED", "RUNNING"), 1),
        "results": {"kept": 2, "owed": 2, "purged": 2, "settled": 2},
        "deliveries": {"DELIVERED": 4, "WAITING": 2},
    }
    assert {kind: sum(states.values()) for kind, states in report.states.items()} == report.counted
    assert report.counted["instances"] == 8 * SLICES + 1
    assert report.files == len(list((node.folder / "data" / "spool").rglob("*.dcm")))
    assert report.deep is deep


A_MEMBER = "SELECT spool_name FROM instance WHERE current AND id IN (SELECT instance_id FROM revision_instance) LIMIT 1"
A_RESULT = "SELECT spool_name FROM result WHERE purged_at IS NULL LIMIT 1"
OF_THE_LATEST = "(SELECT max(id) FROM series_revision WHERE state = 'ROUTED')"
LONG_AGO = "2026-01-01 00:00:00.000000"

VIOLATIONS = []


def violation(*kinds):
    def add(make):
        VIOLATIONS.append(pytest.param(make, kinds, id=make.__name__))
        return make

    return add


@violation(Kind.INSTANCE_LOST, Kind.SERIES_MEMBERS)
def image_that_its_revision_forgot(node):
    node.change(f"DELETE FROM revision_instance WHERE revision_id = {OF_THE_LATEST}", rows=SLICES)


@violation(Kind.INSTANCE_NOT_REPLACED)
def image_that_nothing_replaces(node):
    node.change("UPDATE instance SET current = 0 WHERE id = (SELECT max(instance_id) FROM revision_instance)")


@violation(Kind.INSTANCE_TWO_STATES)
def image_that_is_current_and_purged(node):
    node.change("UPDATE instance SET current = 1 WHERE id = (SELECT min(id) FROM instance WHERE purged_at IS NOT NULL)")


@violation(Kind.SERIES_REVISIONS)
def series_with_two_open_revisions(node):
    series = "(SELECT series_instance_uid FROM series_revision WHERE revision = 2)"
    node.change(f"UPDATE series_revision SET state = 'OPEN' WHERE revision = 1 AND series_instance_uid = {series}")


@violation(Kind.SERIES_REVISIONS)
def series_whose_second_revision_is_missing(node):
    node.change("UPDATE series_revision SET revision = 3 WHERE revision = 2")


@violation(Kind.SERIES_MEMBERS)
def revision_whose_members_changed(node):
    node.change(
        "UPDATE instance SET dataset_sha256 = ? WHERE id = (SELECT max(instance_id) FROM revision_instance)", "0" * 64
    )


@violation(Kind.SERIES_NO_JOB)
def routed_series_without_a_job(node):
    node.change("UPDATE job SET revision_id = 1 WHERE state = 'QUEUED'")


@violation(Kind.STATE_UNKNOWN)
def job_in_a_state_that_does_not_exist(node):
    node.change("UPDATE job SET state = 'PAUSED' WHERE state = 'QUEUED'")


@violation(Kind.JOB_LEASE)
def running_job_without_a_live_lease(node):
    node.change("UPDATE job SET lease_until = ? WHERE state = 'RUNNING'", LONG_AGO)


@violation(Kind.JOB_LEASE)
def running_job_without_a_lease(node):
    node.change("UPDATE job SET lease_until = NULL WHERE state = 'RUNNING'")


@violation(Kind.JOB_END)
def ended_job_without_its_end(node):
    node.change("UPDATE job SET ended_at = NULL WHERE state = 'REJECTED'")


@violation(Kind.JOB_DELIVERIES)
def job_that_counts_as_delivered_too_early(node):
    node.change("UPDATE job SET state = 'DELIVERED', ended_at = created_at WHERE state = 'ENCODED'")


@violation(Kind.JOB_DELIVERIES)
def job_that_waits_for_nothing(node):
    node.change("UPDATE delivery SET state = 'FAILED' WHERE state = 'WAITING'", rows=2)


@violation(Kind.JOB_DELIVERIES, Kind.RESULT_NO_DELIVERY)
def delivered_job_without_a_delivery(node):
    node.change("UPDATE job SET state = 'DELIVERED' WHERE state = 'KEPT'")


@violation(Kind.RESULT_NO_DELIVERY)
def result_whose_delivery_was_forgotten(node):
    node.change("DELETE FROM delivery WHERE id = (SELECT max(id) FROM delivery WHERE state = 'DELIVERED')")


@violation(Kind.RESULT_PURGED, Kind.FILE_NOT_PURGED)
def result_that_was_purged_before_it_was_delivered(node):
    waiting = "(SELECT max(result_id) FROM delivery WHERE state = 'WAITING')"
    node.change(f"UPDATE result SET purged_at = ? WHERE id = {waiting}", LONG_AGO)


@violation(Kind.DELIVERY_LEASE)
def delivery_whose_claimant_is_gone(node):
    node.change("UPDATE delivery SET claimed_by = ?, lease_until = ? WHERE state = 'WAITING'", "x", LONG_AGO, rows=2)


@violation(Kind.DELIVERY_TIME)
def delivery_without_its_time(node):
    node.change("UPDATE delivery SET delivered_at = NULL WHERE id = (SELECT min(id) FROM delivery)")


@violation(Kind.FILE_MISSING)
def image_without_its_file(node):
    node.file(A_MEMBER).unlink()


@violation(Kind.FILE_MISSING)
def result_without_its_file(node):
    node.file(A_RESULT).unlink()


@violation(Kind.FILE_UNREADABLE)
def file_that_was_overwritten(node):
    node.file(A_MEMBER).write_bytes(bytes(5000))


@violation(Kind.FILE_UNREADABLE, Kind.FILE_UNCLAIMED)
def row_that_names_a_file_outside_the_spool(node):
    node.change("UPDATE result SET spool_name = '../x' WHERE id = (SELECT min(id) FROM result WHERE purged_at IS NULL)")


@violation(Kind.FILE_SIZE)
def image_whose_last_byte_is_missing(node):
    file = node.file(A_MEMBER)
    file.write_bytes(file.read_bytes()[:-1])


@violation(Kind.FILE_SIZE)
def result_with_a_byte_too_many(node):
    file = node.file(A_RESULT)
    file.write_bytes(file.read_bytes() + b"\0")


@violation(Kind.FILE_UNCLAIMED)
def file_without_a_row(node):
    file = node.file(A_MEMBER)
    shutil.copy(file, file.with_name("0" * 32 + ".dcm"))


@violation(Kind.FILE_NOT_PURGED)
def purged_file_that_is_still_there(node):
    node.change("UPDATE instance SET purged_at = ? WHERE purged_at IS NOT NULL", LONG_AGO, rows=SLICES)
    file = node.file("SELECT spool_name FROM instance WHERE purged_at IS NOT NULL LIMIT 1")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"images of a patient")


@violation(Kind.COUNT, Kind.SERIES_NO_JOB)
def results_of_a_job_that_is_gone(node):
    node.change("DELETE FROM job WHERE state = 'KEPT'")


@pytest.mark.parametrize(("make", "kinds"), VIOLATIONS)
def test_violation_is_found(node, make, kinds):
    make(node)
    report = node.check()
    assert {each.kind for each in report.examples} == set(kinds), report.examples
    assert set(report.violations) == set(kinds)
    assert not report.is_sound


@pytest.mark.parametrize("name", [A_MEMBER, A_RESULT])
def test_flipped_bit_is_found_by_reading(node, name):
    file = node.file(name)
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    assert node.check().is_sound
    assert node.check(deep=True).violations == {Kind.FILE_CHANGED: 1}


def test_every_kind_of_violation_is_made_and_explained():
    made = {kind for parameter in VIOLATIONS for kind in parameter.values[1]} | {Kind.FILE_CHANGED}
    explained = re.findall(r"^\| `([a-z_.]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert made == set(Kind)
    assert sorted(explained) == sorted(Kind)


def test_more_violations_than_anybody_reads_are_only_counted(node, monkeypatch):
    monkeypatch.setattr("dicom_node.operate.ledger_check._MOST_EXAMPLES", 3)
    shutil.rmtree(node.folder / "data" / "spool")
    (node.folder / "data" / "spool").mkdir()
    report = node.check()
    assert report.violations == {Kind.FILE_MISSING: 7 * SLICES + 1 + 6}
    assert len(report.examples) == 3


def test_instance_whose_newer_bytes_were_damaged_is_replaced(node):
    newer = (
        "SELECT n.id FROM instance n JOIN instance o USING (series_instance_uid, sop_instance_uid)"
        " WHERE n.current AND NOT o.current AND o.purged_at IS NULL"
    )
    node.change(f"UPDATE instance SET current = 0, damaged_at = received_at WHERE id = ({newer})")
    assert node.check().is_sound


def test_check_stops_when_the_node_does(node):
    with pytest.raises(Stopping):
        node.check(is_stopping=lambda: True)


def test_node_at_work_is_sound_at_every_moment(node, tmp_path):
    spool, ledger = open_store(load_settings(node.config))
    worked = threading.Event()

    def work():
        try:
            for number in range(12):
                receive(spool, ledger, tmp_path / str(number), number)
                for revision in ledger.arrivals.due_revisions(now_utc()):
                    ledger.arrivals.complete(revision, Completion(complete=True, reason="test"), now_utc())
                for revision in ledger.routing.due_revisions():
                    ledger.routing.route(revision, [Decision(None, None, {}, 0)], None, now_utc())
                for name in ledger.retention.purge_due(0.0, 0.0, now_utc(), 100):
                    spool.delete(name)
        finally:
            worked.set()

    checks = Counter()
    thread = threading.Thread(target=work)
    thread.start()
    with closing(ledger):
        while not worked.is_set():
            report = check_ledger(ledger.consistency, spool)
            assert report.is_sound, report.examples
            checks[report.counted["instances"]] += 1
        thread.join()
        assert check_ledger(ledger.consistency, spool).counted["series"] == 8 + 12
    assert len(checks) > 1, "it was checked at several moments"


def run_command(node, *options):
    return CliRunner().invoke(main, ["--config", str(node.config), "ledger", "check", *options])


def test_command_says_sound_and_changes_nothing(node):
    before = {path: path.stat().st_mtime_ns for path in node.folder.rglob("*") if path.suffix in (".sqlite3", ".dcm")}
    done = run_command(node, "--json", "--deep")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["sound"], said["deep"], said["violations"]) == (True, True, {})
    assert said["counted"]["instances"] == 8 * SLICES + 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "sound" in run_command(node).stdout


def test_command_names_what_is_wrong(node):
    node.file(A_MEMBER).unlink()
    done = run_command(node, "--json")
    assert done.exit_code == 1
    (example,) = json.loads(done.stdout)["examples"]
    assert example["kind"] == "file.missing"
    shown = run_command(node)
    assert (shown.exit_code, "file.missing" in shown.stdout) == (1, True)


@pytest.mark.parametrize("gone", ["ledger.sqlite3", "spool"])
def test_command_that_cannot_read_says_so_and_creates_nothing(node, gone):
    place = node.folder / "data" / gone
    place.rename(node.folder / "elsewhere")
    done = run_command(node)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert not place.exists()


def test_command_does_not_upgrade(node):
    node.change("UPDATE alembic_version SET version_num = '0009'")
    done = run_command(node)
    assert done.exit_code == 2
    assert "has schema 0009" in done.stderr
