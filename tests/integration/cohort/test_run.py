"""`cohort run` over a folder, with its own work process: what is done, refused and failed, and why."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from dicom_node.app.stores import open_store
from dicom_node.cohort.definition import Limits, load_definition
from dicom_node.cohort.pseudonym import read_key, write_new_key
from dicom_node.cohort.table import read_rows, read_without_rows
from dicom_node.demo.ct_series import SyntheticPatient, write_ct_series
from dicom_node.errors import ConfigurationError
from dicom_node.pipeline.notices import Notices
from dicom_node.pipeline.results import Installation, ResultStore
from dicom_node.pipeline.routing import Routing
from dicom_node.reading.reader import ImageReader
from dicom_node.receive.adopt import adopt_unclaimed
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.standard.part10 import HEAD_LENGTH, data_set_start
from dicom_node.store.clock import now_utc
from dicom_node.store.cohorts import Selected
from dicom_node.store.routing import Order
from dicom_node.store.states import JobState, PullState
from dicom_node.types import Completion
from inference.types import Geometry, Volume
from tests.support.ct_series import Stack, write
from tests.support.received_series import receive, receive_instances

if TYPE_CHECKING:
    from pathlib import Path

RULES = "rules: [{name: all, model: tissue, when: [], priority: 5}]"


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "node.yaml"
    settings = {
        "node": {"data_folder": "data", "port": 0},
        "models": {"tissue": {"kind": "tissue"}, "other": {"kind": "tissue"}},
        "operate": {"sweep_s": 0.1, "disk_stop_percent": 100, "disk_resume_percent": 100},
        "receive": {"minimum_free_disk_bytes": 0},
    }
    file.write_text(yaml.safe_dump(settings))
    (tmp_path / "rules.yaml").write_text(RULES)
    write_new_key(tmp_path / "key")
    return file


def define(place, **changes) -> Path:
    file = place / "cohort.yaml"
    base = {"name": "c", "data_set": "out", "key_file": "key", "folder": "ct", "model": "tissue"}
    definition = base | {"limits": {"free_disk_gib": 0, "attempts": 1}} | changes
    file.write_text(yaml.safe_dump({key: value for key, value in definition.items() if value is not None}))
    return file


def run(config, file, *options):
    command = [sys.executable, "-m", "dicom_node.cli", "--config", str(config), "cohort", "run", str(file), "--json"]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=120)


def write_ct(folder, seed, planes=6, patient_age=50):
    hu = np.full((planes, 16, 16), -1000, np.int16)
    hu[1:-1, 4:12, 4:12] = 40 + seed
    volume = Volume(hu, Geometry(hu.shape, np.diag([2.0, 2.0, 3.0, 1.0])))
    return write_ct_series(volume, folder / str(seed), SyntheticPatient(seed, patient_age, "F"))


def test_done_refused_and_failed_counts_add_up_and_each_is_explained(config, tmp_path):
    ct = tmp_path / "ct"
    done = write_ct(ct, 1)
    refused = write_ct(ct, 2)
    (ct / "2" / "ct_0003.dcm").unlink()  # a missing slice
    failed = write_ct(ct, 3)
    (ct / "3" / "note.txt").write_text("no DICOM")
    first = dcmread(ct / "3" / "ct_0000.dcm")
    first.file_meta.MediaStorageSOPInstanceUID = "1.2.3"  # contradicts its data set, so the node refuses it
    first.save_as(ct / "3" / "ct_0000.dcm")
    answered = run(config, define(tmp_path), "--work")
    assert answered.returncode == 3, answered.stderr
    summary = json.loads(answered.stdout)
    counts = {key: summary[key] for key in ("selected", "done", "refused", "failed", "waiting")}
    assert counts == {"selected": 3, "done": 1, "refused": 1, "failed": 1, "waiting": 0}
    rows = read_rows(tmp_path / "out").to_pylist()
    assert {(row["model"], row["age_years"], row["sex"], row["origin"]) for row in rows} == {
        ("tissue", 50.0, "F", "computed")
    }
    soft = next(row for row in rows if row["mean_hu"] == 41.0)
    assert soft["volume_ml"] == pytest.approx(4 * 64 * 12 / 1000)
    assert soft["truncated"] is False
    explained = {row["outcome"]: row["reason"] for row in read_without_rows(tmp_path / "out").to_pylist()}
    assert "missing" in explained["refused"]
    assert explained["failed"].startswith("5 of 6 instances arrived (1 refused: ")
    told = answered.stdout + answered.stderr + (tmp_path / "data" / "cohort-work.log").read_text()
    assert "Phantom^" not in told
    assert not any(uid in str(rows) + str(explained) for uid in (done, refused, failed))


def test_cut_or_repeated_image_at_the_end_of_a_stack_fails_the_series(config, tmp_path):
    ct = tmp_path / "ct"
    series = {number: write_ct(ct, number) for number in (1, 2, 3, 4)}
    cut = ct / "1" / "ct_0005.dcm"
    cut.write_bytes(cut.read_bytes()[:-100])
    (ct / "1" / "note.txt").write_text("no DICOM")
    repeated, last = (dcmread(ct / "2" / f"ct_000{number}.dcm") for number in (4, 5))
    last.SOPInstanceUID = last.file_meta.MediaStorageSOPInstanceUID = repeated.SOPInstanceUID
    last.save_as(ct / "2" / "ct_0005.dcm")
    (ct / "3" / "copy.dcm").write_bytes((ct / "3" / "ct_0005.dcm").read_bytes())
    write_recoded(ct / "3" / "ct_0004.dcm", ct / "3" / "recoded.dcm", changed=0)
    write_recoded(ct / "4" / "ct_0004.dcm", ct / "4" / "recoded.dcm", changed=1)
    answered = run(config, define(tmp_path), "--work")
    summary = json.loads(answered.stdout)
    assert [summary[key] for key in ("selected", "done", "failed", "refused")] == [4, 1, 2, 1]
    pseudonyms = read_key(tmp_path / "key")
    assert set(read_rows(tmp_path / "out")["series"].to_pylist()) == {pseudonyms.uid(series[3])}
    reasons = {row["series"]: row["reason"] for row in read_without_rows(tmp_path / "out").to_pylist()}
    assert reasons[pseudonyms.uid(series[1])] == (
        "5 of 6 instances arrived (files left out: 1 (damaged, or not readable as DICOM))"
    )
    assert reasons[pseudonyms.uid(series[2])] == (
        "5 of 6 instances arrived (1 refused: another image of the series has this SOP Instance UID)"
    )
    assert "with different pixels: two images, one UID" in reasons[pseudonyms.uid(series[4])]


def write_recoded(image, path, *, changed):
    """The image in another transfer syntax, with ``changed`` of the bits of its first pixel."""
    recoded = dcmread(image)
    recoded.PixelData = bytes([recoded.PixelData[0] ^ changed]) + recoded.PixelData[1:]
    recoded.compress(RLELossless, generate_instance_uid=False)
    recoded.save_as(path)


def test_files_without_preamble_and_deflated_files_are_taken(config, tmp_path):
    uids = [write_ct(tmp_path / "ct", number) for number in (1, 2, 3)]
    for path in sorted((tmp_path / "ct" / "1").iterdir()):  # a bare data set
        content = path.read_bytes()
        path.write_bytes(content[data_set_start(content[:HEAD_LENGTH]) :])
    for path in sorted((tmp_path / "ct" / "2").iterdir()):
        dataset = dcmread(path)
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.save_as(path)
    for path in sorted((tmp_path / "ct" / "3").iterdir()):  # no group length
        content = path.read_bytes()
        path.write_bytes(content[:132] + content[144:])
    answered = run(config, define(tmp_path), "--work")
    summary = json.loads(answered.stdout)
    assert (summary["done"], summary["failed"]) == (2, 1)
    pseudonyms = read_key(tmp_path / "key")
    assert set(read_rows(tmp_path / "out")["series"].to_pylist()) == {pseudonyms.uid(uid) for uid in uids[:2]}
    (explained,) = read_without_rows(tmp_path / "out").to_pylist()
    assert explained["reason"] == "0 of 6 instances arrived (files left out: 6 (not a DICOM file (ValueError)))"


def test_finished_cohort_with_another_data_set_is_refused(config, tmp_path):
    write_ct(tmp_path / "ct", 1)
    assert run(config, define(tmp_path), "--work").returncode == 0
    other = run(config, define(tmp_path, data_set="out2"))
    assert other.returncode == 1
    assert "begun with another selection, model, destination or data set" in other.stderr


def test_repeated_command_does_nothing_and_another_cohort_reuses_the_results(config, tmp_path):
    write_ct(tmp_path / "ct", 1)
    assert run(config, define(tmp_path), "--work").returncode == 0
    again = json.loads(run(config, define(tmp_path)).stdout)  # without a work process: there is nothing to do
    assert (again["selected"], again["done"]) == (1, 1)
    other = run(config, define(tmp_path, name="d", data_set="out2"))
    assert json.loads(other.stdout)["done"] == 1
    assert read_rows(tmp_path / "out2").equals(read_rows(tmp_path / "out"))
    _, ledger = open_store(load_settings(config))
    assert len(ledger.overview.jobs(9)) == 1
    ledger.close()


def test_changed_cohort_definition_is_refused(config, tmp_path):
    for name in ("ct", "ct2"):
        (tmp_path / name).mkdir()
    empty = json.loads(run(config, define(tmp_path)).stdout)
    assert (empty["selected"], empty["rows"]) == (0, 0)
    changed = run(config, define(tmp_path, folder="ct2"))
    assert changed.returncode == 1
    assert "begun with another selection" in changed.stderr
    assert changed.stdout == ""


# ---- routing


@pytest.fixture
def node(config):
    settings = load_settings(config)
    spool, ledger = open_store(settings)
    results = ResultStore(ledger.jobs, ledger.results, spool, Installation("node-1", "2.25.1"))
    rules = load_rules(settings.rules_file, settings)
    with ImageReader() as reader:
        notices = Notices(spool, reader, results)
        yield spool, ledger, Routing(ledger.routing, spool, reader, rules, notices, settings.work.attempts)
    ledger.close()


def complete_and_route(ledger, routing):
    for revision in ledger.arrivals.due_revisions(now_utc().replace(year=now_utc().year + 1)):
        assert ledger.arrivals.complete(revision, Completion(complete=True, reason="test"), now_utc())
    routing.route_complete()


def ordered(ledger, uid, model, *, name="c"):
    ledger.cohorts.begin(Order(name, model, {}, -1000), "0" * 64, "NODE")
    ledger.cohorts.select(name, [Selected(uid, "1.2", 4)])
    (series,) = ledger.cohorts.to_pull(name, now_utc(), 9)
    return series


def jobs(ledger):
    return sorted((job.rule, job.model, job.priority) for job in ledger.overview.jobs(9))


def test_series_sent_to_the_node_is_routed_by_rules_and_gets_the_cohort_job_in_addition(node, tmp_path):
    spool, ledger, routing = node
    uid = receive(spool, ledger, tmp_path / "a", 40)  # before the pull
    series = ordered(ledger, uid, "other")
    ledger.cohorts.pull_started(series, now_utc())
    assert ledger.cohorts.answers("c", uid, now_utc()) is None, "not routed yet"
    complete_and_route(ledger, routing)
    assert jobs(ledger) == [("all", "tissue", 5)]
    answers = ledger.cohorts.answers("c", uid, now_utc())
    assert [(each.state, each.report) for each in answers.jobs] == [(JobState.QUEUED, None)]
    assert jobs(ledger) == [("all", "tissue", 5), ("cohort c", "other", -1000)]
    assert ledger.cohorts.answers("c", uid, now_utc()) == answers, "added once"


@pytest.mark.parametrize(
    ("model", "expected"), [("other", ("cohort c", "other", -1000)), (None, ("all", "tissue", -1000))]
)
def test_pulled_series_is_routed_by_its_order(node, tmp_path, model, expected):
    spool, ledger, routing = node
    uid = receive(spool, ledger, tmp_path / "a", 40)
    complete_and_route(ledger, routing)
    assert jobs(ledger) == [("all", "tissue", 5)]
    series = ordered(ledger, uid, model)
    ledger.cohorts.pull_started(series, now_utc())
    stored = next((tmp_path / "data" / "spool").rglob("*.dcm"))
    dataset = dcmread(stored)
    dataset.PixelData = bytes(len(dataset.PixelData))  # corrected in the archive: the pull creates a new revision
    dataset.save_as(pulled := stored.with_name("0" * 32 + ".dcm"))
    later_s = time.time() + 0.1  # the clock of a file system is some milliseconds behind
    os.utime(pulled, (later_s, later_s))
    assert adopt_unclaimed(spool, ledger.arrivals, ledger.retention.claims, -1).adopted == 1
    complete_and_route(ledger, routing)
    assert expected in jobs(ledger)
    assert len(jobs(ledger)) == 2


def test_failed_series_is_pulled_again_only_on_request(node):
    _, ledger, _ = node
    series = ordered(ledger, "1.2.3", "tissue")
    ledger.cohorts.pull_started(series, now_utc())
    ledger.cohorts.ended(series, PullState.FAILED, "3 of 4 instances arrived", now_utc())
    assert ledger.cohorts.to_pull("c", now_utc(), 9) == ()
    assert ledger.cohorts.retry("c") == 1
    (again,) = ledger.cohorts.to_pull("c", now_utc(), 9)
    assert (again.state, again.attempts, again.reason) == (PullState.SELECTED, 0, "")


def test_images_of_a_pull_that_was_given_up_are_not_analysed_unless_sent_later(node, tmp_path):
    spool, ledger, routing = node
    (tmp_path / "a").mkdir()
    images = write(tmp_path / "a", Stack(np.full((4, 8, 8), 1064, np.uint16)))
    series = ordered(ledger, images.series_instance_uid, "other", name="d")
    ledger.cohorts.pull_started(series, now_utc() - timedelta(hours=1))
    receive_instances(spool, ledger, images.instances)
    ledger.cohorts.ended(series, PullState.FAILED, "3 of 4 instances came", now_utc())
    complete_and_route(ledger, routing)
    assert jobs(ledger) == [("cohort d", None, -1000)]
    (rejected,) = ledger.overview.jobs(9)
    assert rejected.reason == "the pull of cohort 'd' was given up: 3 of 4 instances came"

    ledger.cohorts.ended(series, PullState.FAILED, "3 of 4 instances came", now_utc() - timedelta(minutes=30))
    stored = next((tmp_path / "data" / "spool").rglob("*.dcm"))
    dataset = dcmread(stored)
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(stored.with_name("0" * 32 + ".dcm"))
    assert adopt_unclaimed(spool, ledger.arrivals, ledger.retention.claims, -1).adopted == 1
    complete_and_route(ledger, routing)
    assert ("all", "tissue", 5) in [(job.rule, job.model, job.priority) for job in ledger.overview.jobs(9)]


# ---- the definition


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"folder": None}, "exactly one of query, series_list and folder"),
        ({"query": {"Modality": "CT"}}, "exactly one of query, series_list and folder"),
        ({"folder": None, "query": {"Modality": "CT"}}, "archive or web_archive is needed"),
        ({"stored_reports": True}, "stored_reports needs no model"),
        ({"folder": None, "query": {}, "web_archive": {"url": "https://a:b@c/d"}}, "without user and password"),
        ({"model": "nothing"}, "nothing"),
        ({"name": "n" * 65}, "64 characters"),
        ({"limits": {"hours": "7-19"}}, "hours such as"),
        ({"folder": None, "query": {"StudyDte": "2020"}}, "not the keyword"),
        ({"folders": "x"}, "folders"),
    ],
)
def test_invalid_definition_is_refused_with_its_location(config, tmp_path, changes, says):
    (tmp_path / "ct").mkdir()
    with pytest.raises(ConfigurationError, match=says):
        load_definition(define(tmp_path, **changes), load_settings(config))


def test_hours_may_span_midnight():
    def at(hours, clock):
        moment = now_utc().replace(hour=int(clock[:2]), minute=int(clock[3:]), second=0, microsecond=0)
        return Limits(hours=hours).is_open_at(moment)

    assert [at("19:00-06:30", clock) for clock in ("18:59", "19:00", "02:00", "06:29", "06:30")] == [
        *(False, True, True, True, False)
    ]
    assert [at("08:00-10:00", clock) for clock in ("07:59", "08:00", "10:00")] == [False, True, False]
    assert at(None, "12:00")


def test_two_runs_on_one_data_set_exclude_each_other(config, tmp_path):
    (tmp_path / "ct").mkdir()
    (tmp_path / "out" / "measurements").mkdir(parents=True)
    unfinished = tmp_path / "out" / "measurements" / "x.parquet.part"  # of the run that holds the data set
    unfinished.touch()
    held = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    answered = run(config, define(tmp_path))
    os.close(held)
    assert answered.returncode == 1
    assert "another `cohort run` is writing" in answered.stderr
    assert unfinished.exists()
    assert run(config, define(tmp_path)).returncode == 0
    assert not unfinished.exists()


def test_without_the_extra_the_command_says_what_to_install(config, tmp_path):
    (tmp_path / "ct").mkdir()
    program = (
        "import sys; sys.modules['pyarrow'] = None; from dicom_node.cli import main;"
        f"main(['--config', {str(config)!r}, 'cohort', 'run', {str(define(tmp_path))!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: cohorts require pyarrow: pip install 'dicom-node[research]'\n"
