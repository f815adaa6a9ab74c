"""Views of the ledger for people and programs. Programs rely on the keys of the JSON, which must not change."""

from __future__ import annotations

import json
from dataclasses import replace

from click.testing import CliRunner

from dicom_node.app.stores import open_store
from dicom_node.cli import main
from dicom_node.settings import load_settings
from dicom_node.store.schema import delivery, job, result, series_revision
from dicom_node.store.states import DeliveryState, JobState, RevisionState
from dicom_node.store.views import json_form
from dicom_node.types import ConditionOutcome
from tests.integration.store.rows import (
    DECISION,
    IDENTITY,
    NOW,
    RUN,
    SERIES,
    arrive,
    claim,
    complete,
    deliver,
    queued_job,
    some_results,
)

KEYS_OF_COUNTS = {
    "associations": {"open"},
    "instances": {"current", "replaced", "damaged", "purged"},
    "series": {"OPEN", "ROUTED"},
    "jobs": {"ENCODED"},
    "deliveries": {"DELIVERED", "WAITING"},
}
KEYS_OF_A_JOB_IN_THE_LIST = [
    "id",
    "state",
    "model",
    "rule",
    "priority",
    "attempts",
    "progress",
    "stage",
    "reason",
    "created_at",
    "ended_at",
    "series_instance_uid",
    "study_instance_uid",
    "revision",
    "sending_ae",
]
KEYS_OF_AN_OPEN_SERIES = [
    "series_instance_uid",
    "revision",
    "sending_ae",
    "first_arrival",
    "last_arrival",
    "look_again_at",
    "expected_count",
]
KEYS_OF_A_JOB = [
    "id",
    "revision_id",
    "rule",
    "model",
    "destinations",
    "priority",
    "unchecked_hu",
    "decision",
    "state",
    "reason",
    "attempts",
    "not_counted",
    "claimed_by",
    "lease_until",
    "not_before",
    "created_at",
    "requeued_at",
    "started_at",
    "ended_at",
    "progress",
    "stage",
    "stage_seconds",
    "model_identity",
    "run_report",
    "names_by_label",
    "image_notes",
    "series",
    "results",
    "deliveries",
    "notes",
]
OUTCOME = ConditionOutcome("Modality equals CT", "CT", held=True)


def encoded_job(ledger):
    job_id = queued_job(ledger, replace(DECISION, outcomes={"ct": (OUTCOME,)}))
    notes = ["gantry tilt of 5.0 degrees"]
    ledger.jobs.encoded(claim(ledger), some_results(), IDENTITY, RUN, {"segment": 2.0}, NOW, image_notes=notes)
    deliver(ledger, "pacs")
    return job_id


def columns(table):
    return [column.name for column in table.columns]


def test_json_has_the_keys_that_programs_rely_on(ledger):
    job_id = encoded_job(ledger)
    arrive(ledger, 1, series=f"{SERIES}.2")
    counts = json_form(ledger.overview.counts())
    assert {name: set(states) for name, states in counts.items()} == KEYS_OF_COUNTS
    assert list(json_form(ledger.overview.jobs(1)[0])) == KEYS_OF_A_JOB_IN_THE_LIST
    assert list(json_form(ledger.overview.open_series()[0])) == KEYS_OF_AN_OPEN_SERIES
    shown = json_form(ledger.overview.job(job_id))
    assert list(shown) == KEYS_OF_A_JOB
    assert list(shown)[:-4] == columns(job)
    assert list(shown["series"]) == columns(series_revision)
    assert list(shown["results"][0]) == columns(result)
    assert list(shown["deliveries"][0]) == columns(delivery)


def test_json_of_a_job_is_what_was_recorded(ledger):
    shown = json.loads(json.dumps(json_form(ledger.overview.job(encoded_job(ledger)))))
    assert shown["created_at"] == NOW.isoformat()
    assert shown["decision"] == {"ct": [{"condition": "Modality equals CT", "seen": "CT", "held": True}]}
    assert shown["model_identity"]["digest"] == IDENTITY.digest
    assert shown["run_report"] == {
        "backend": "numpy 2.3.4",
        "device": "CPU",
        "precision": "float32",
        "notes": [{"text": "fell back to the CPU", "changes_answer": True}],
        "stage_seconds": {"infer": 1.5},
    }
    assert shown["image_notes"] == ["gantry tilt of 5.0 degrees"]
    assert [each["kind"] for each in shown["results"]] == ["SEG", "SR"]
    assert {(each["destination"], each["state"]) for each in shown["deliveries"]} == {
        ("pacs", "DELIVERED"),
        ("archive", "WAITING"),
    }


def test_job_command_shows_the_notes_on_the_images(tmp_path):
    (tmp_path / "node.yaml").write_text("node: {data_folder: data}\nmodels: {tissue: {kind: tissue}}\n")
    _, ledger = open_store(load_settings(tmp_path / "node.yaml"))
    job_id = encoded_job(ledger)
    ledger.close()
    command = ["--config", str(tmp_path / "node.yaml"), "job", str(job_id)]
    shown = CliRunner().invoke(main, command, catch_exceptions=False).output
    assert "note: gantry tilt of 5.0 degrees" in shown.splitlines()


def test_views_are_typed(ledger):
    found = ledger.overview.job(encoded_job(ledger))
    assert (found.run_report, found.model_identity, found.decision) == (RUN, IDENTITY, {"ct": (OUTCOME,)})
    assert (found.state, found.series.state, found.created_at) == (JobState.ENCODED, RevisionState.ROUTED, NOW)
    assert {type(each.state) for each in found.deliveries} == {DeliveryState}


def test_list_is_newest_first_and_narrowed_by_state_and_series(ledger):
    first = encoded_job(ledger)
    arrive(ledger, 1, series=f"{SERIES}.2")
    (second,) = ledger.routing.route(complete(ledger), [DECISION], None, NOW)
    assert [row.id for row in ledger.overview.jobs(10)] == [second, first]
    assert [row.id for row in ledger.overview.jobs(1)] == [second]
    assert [row.id for row in ledger.overview.jobs(10, JobState.ENCODED)] == [first]
    assert [row.id for row in ledger.overview.jobs(10, None, f"{SERIES}.2")] == [second]


def test_nonexistent_job_has_no_view(ledger):
    assert ledger.overview.job(77) is None
