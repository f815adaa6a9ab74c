"""The commands as called by programs: stdout is the answer, errors are one line, secrets are never shown."""

from __future__ import annotations

import json
import logging
import signal
import socket
import stat
import warnings
from datetime import UTC, datetime

import pytest
import structlog
import yaml
from click.testing import CliRunner

from dicom_node.app.listening import run_listener
from dicom_node.app.stores import open_store
from dicom_node.cli import main
from dicom_node.errors import ConfigurationError
from dicom_node.settings import load_settings
from dicom_node.standard.files import DAMAGED
from dicom_node.standard.opening import EMPTY
from dicom_node.store.processes import Role
from dicom_node.store.workers import WorkerName
from dicom_node.types import Completion, Decision, ReceivedInstance
from tests.support.ct_series import Stack, noise
from tests.support.ct_series import write as write_ct
from tests.support.other_process import other_process

NOW = datetime(2026, 3, 1, tzinfo=UTC)
SERIES = "1.2.840.1"


@pytest.fixture(autouse=True)
def _process_as_it_was():
    root = logging.getLogger()
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    handlers, level, show = root.handlers, root.level, warnings.showwarning
    yield
    logging.captureWarnings(capture=False)
    warnings.showwarning = show
    root.handlers = handlers
    root.setLevel(level)
    for number, handler in signals.items():
        signal.signal(number, handler)
    structlog.reset_defaults()


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "node.yaml"
    write(file)
    (tmp_path / "rules.yaml").write_text("rules: [{name: all, model: tissue, when: []}]")
    return file


def write(file, **changes):
    settings = {"node": {"data_folder": "data", "port": 0}, "models": {"tissue": {"kind": "tissue"}}, **changes}
    file.write_text(yaml.safe_dump(settings))


def call(config, *arguments):
    return CliRunner().invoke(main, ["--config", str(config), *arguments])


def rejected_job(config) -> int:
    """The id of a job that no rule matched."""
    _, ledger = open_store(load_settings(config))
    ledger.arrivals.record_instance(
        ReceivedInstance(
            sop_instance_uid=f"{SERIES}.1",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            series_instance_uid=SERIES,
            study_instance_uid="1.2.840.9",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            spool_name="one.dcm",
            dataset_sha256="a" * 64,
            size_bytes=100,
            calling_ae="PACS",
            peer_address="127.0.0.1",
            association_id="one",
            received_at=NOW,
        )
    )
    (revision,) = ledger.arrivals.due_revisions(NOW)
    ledger.arrivals.complete(revision, Completion(complete=True, reason="regular"), NOW)
    (whole,) = ledger.routing.due_revisions()
    (job_id,) = ledger.routing.route(whole, [Decision(None, None, {}, 0)], None, NOW)
    ledger.close()
    return job_id


def test_every_command_for_people_answers_programs_in_json(config):
    job_id = rejected_job(config)
    status = json.loads(call(config, "status", "--json").stdout)
    assert status["counts"]["jobs"] == {"REJECTED": 1}
    (row,) = json.loads(call(config, "jobs", "--json").stdout)
    assert (row["id"], row["reason"]) == (job_id, "no rules are configured")
    assert json.loads(call(config, "job", str(job_id), "--json").stdout)["series"]["reason"] == "regular"
    answer = json.loads(call(config, "retry", str(job_id), "--json").stdout)
    assert answer == {"job": job_id, "answer": "the series is routed again"}
    for command in (["status"], ["jobs"], ["job", str(job_id)]):
        assert call(config, *command).exit_code == 0
    assert "SUPERSEDED" in call(config, "jobs").stdout, "states are not truncated in a terminal of 80 columns"


def test_status_shows_the_alarms_that_hold(config):
    _, ledger = open_store(load_settings(config))
    ledger.alarms.record_check({"file.missing": 2})
    ledger.close()
    status = json.loads(call(config, "status", "--json").stdout)
    (alarm,) = [each for each in status["alarms"] if each["kind"] != "disk"]
    text = "the last check of the ledger found violations (file.missing: 2)"
    assert alarm == {"kind": "ledger", "subject": "", "text": text, "since": None}
    assert "file.missing" in call(config, "status").stdout


def test_status_shows_the_processes_that_run_and_those_that_died(config):
    assert json.loads(call(config, "status", "--json").stdout)["processes"] == []
    assert "no process of the node runs on this machine" in call(config, "status").stdout
    _, ledger = open_store(load_settings(config))
    folder = str((config.parent / "data").resolve())
    with other_process() as (process, name):
        for role in (Role.WORK, Role.LISTEN):
            assert ledger.processes.take(role, folder, name, NOW) is None
        own = WorkerName.own()
        ledger.processes.leave(Role.WORK, folder, name)
        assert ledger.processes.take(Role.WORK, folder, own, NOW) is None
        shown = json.loads(call(config, "status", "--json").stdout)["processes"]
        assert [(each["role"], each["pid"], each["lives"]) for each in shown] == [
            ("listen", name.pid, True),
            ("work", own.pid, True),
        ]
        process.kill()
        process.wait()
        shown = json.loads(call(config, "status", "--json").stdout)["processes"]
        assert [(each["role"], each["lives"]) for each in shown] == [("listen", False), ("work", True)]
    assert str(own.pid) in call(config, "status").stdout
    ledger.close()


def test_errors_are_on_stderr_with_an_exit_code(config):
    for command, code in ((["job", "77"], 1), (["retry", "77"], 1), (["job", "9" * 20], 2), (["job", "x"], 2)):
        answered = call(config, *command)
        assert (answered.exit_code, answered.stdout) == (code, ""), command


def test_explain_of_a_folder_prints_only_json(config, tmp_path):
    folder = tmp_path / "ct"
    folder.mkdir()
    write_ct(folder, Stack(noise((3, 4, 4))))
    (folder / "note.txt").write_text("no DICOM")
    (explained,) = json.loads(call(config, "rules", "explain", str(folder), "--json").stdout)
    assert (explained["instances"], explained["notes"]) == (3, [])
    assert explained["decisions"][0]["model"] == "tissue"


def test_explain_lists_the_files_it_could_not_read(config, tmp_path):
    (tmp_path / "ct").mkdir()
    written = write_ct(tmp_path / "ct", Stack(noise((5, 4, 4))))
    first, second, third, *_ = (instance.path for instance in written.instances)
    first.write_bytes(first.read_bytes()[:-8])
    second.write_bytes(b"")
    third.with_name("copy").write_bytes(third.read_bytes())
    (explained,) = json.loads(call(config, "rules", "explain", str(tmp_path / "ct"), "--json").stdout)
    assert explained["instances"] == 3
    assert explained["notes"] == [f"files left out: 1 ({DAMAGED})", f"files left out: 1 ({EMPTY})"]
    said = call(config, "rules", "explain", str(tmp_path / "ct")).stdout
    assert all(note in said for note in explained["notes"])


def test_explain_states_which_destinations_get_a_notice_of_refusal(config, tmp_path):
    write(config, destinations={"pacs": {"host": "127.0.0.1", "port": 104, "ae_title": "PACS"}})
    rule = "{name: none, refuse: not today, when: [], destinations: [{to: pacs, notice: true}]}"
    (tmp_path / "rules.yaml").write_text(f"rules: [{rule}]")
    (tmp_path / "ct").mkdir()
    write_ct(tmp_path / "ct", Stack(noise((3, 4, 4))))
    said = call(config, "rules", "explain", str(tmp_path / "ct")).stdout
    assert "rule 'none' refuses: not today; notice to: pacs" in said


def test_explain_reports_a_folder_without_dicom(config, tmp_path):
    (tmp_path / "empty").mkdir()
    answered = call(config, "rules", "explain", str(tmp_path / "empty"))
    assert answered.exit_code == 1
    assert "contains no DICOM instance" in answered.stderr


def test_ledger_and_spool_are_accessible_only_to_the_node(config, tmp_path):
    call(config, "status")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").iterdir()}
    assert modes["spool"] == 0o700
    assert {mode for name, mode in modes.items() if name.startswith("ledger")} == {0o600}


def test_impossible_data_folder_is_a_one_line_error(config, tmp_path):
    (tmp_path / "file").write_text("")
    write(config, node={"data_folder": "file/data"})
    answered = call(config, "status")
    assert answered.exit_code == 1
    assert answered.stderr.startswith("Error: node.data_folder ")


@pytest.mark.parametrize(
    "text",
    [
        "ledger_url: 'postgresql://node:s3cret@host:12x/ledger'",
        "ledger_url: 'postgresql://node@host:s3cret/ledger'",
        "ledger_url: 's3cret'",
        "ledger_url: 'oracle+nothing://node:s3cret@host/ledger'",
        'ledger_url: "postgresql://node:s3cret@host/ledger\nnode: {',
    ],
)
def test_database_password_is_in_no_error(config, text):
    config.write_text(text)
    answered = call(config, "status")
    assert answered.exit_code == 1
    assert answered.stderr.startswith("Error: ")
    assert "s3cret" not in answered.output


def test_occupied_port_is_named(config):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        write(config, node={"data_folder": "data", "port": port})
        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
            run_listener(load_settings(config))


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("listen", Role.LISTEN),
        ("work", Role.WORK),
        ("serve", Role.SERVE),
        ("serve", Role.LISTEN),
        ("serve", Role.WORK),
    ],
)
def test_second_process_of_a_role_ends_before_it_touches_anything(config, command, role):
    _, ledger = open_store(load_settings(config))
    ledger.arrivals.association_opened("open", "PACS", "127.0.0.1", NOW)
    with other_process() as (process, name):
        assert ledger.processes.take(role, str((config.parent / "data").resolve()), name, NOW) is None
        answered = call(config, command)
        assert process.poll() is None
    assert answered.exit_code == 1
    in_use = (
        f"{config.parent / 'data'} is in use by PID {name.pid} on {name.host} since 2026-03-01 00:00:00 UTC ({role})"
    )
    assert answered.stderr == f"Error: {in_use}\n"
    assert ledger.overview.counts().associations == {"open": 1}
    ledger.close()


@pytest.mark.parametrize("command", [["phantom", "--out", "x"], ["demo"]])
def test_negative_seed_is_a_usage_error(command):
    done = CliRunner().invoke(main, [*command, "--seed", "-1"])
    assert done.exit_code == 2
    assert "-1 is not in the range" in done.output
