"""A network that fails in a node's worker: what ran instead is stated in log, ledger, command and report."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
import structlog
import yaml
from click.testing import CliRunner

from dicom_node.app.stores import open_store
from dicom_node.app.working import open_pipeline
from dicom_node.cli import main
from dicom_node.demo.phantom_series import write_series
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.standard.files import read_headers
from dicom_node.store.states import JobState
from dicom_node.types import ResultKind
from dicom_node.work.pool import WorkerPool
from inference.phantom import phantom
from tests.support.received_series import receive_instances

DEMO_MODEL = Path(__file__).parents[3] / "config" / "models" / "phantom_demo_104"
PLUG = """
from inference.nnunet.networks.openvino_network import OpenVinoNetwork

def run(self, windows):
    raise RuntimeError("Exception from src/inference/src/cpp/infer_request.cpp:223:\\nno such instruction")

OpenVinoNetwork.run = run
"""


@pytest.fixture
def config(tmp_path):
    settings = {
        "node": {"data_folder": "data", "port": 0},
        "completion": {"regular_quiet_s": 0, "otherwise_quiet_s": 0},
        "models": {"demo": {"kind": "nnunet", "package": str(DEMO_MODEL)}},
        "destinations": {"pacs": {"host": "127.0.0.1", "port": 1, "ae_title": "PACS"}},
    }
    (tmp_path / "node.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "rules.yaml").write_text("rules: [{name: all, model: demo, destinations: [pacs], when: []}]")
    return tmp_path / "node.yaml"


def texts(dataset):
    return " ".join(str(element.value) for element in dataset.iterall() if element.VR in ("UT", "LO", "ST", "LT"))


def test_fall_back_in_the_worker_is_stated_in_log_ledger_command_and_report(config, tmp_path, monkeypatch):
    (tmp_path / "plug").mkdir()
    (tmp_path / "plug" / "sitecustomize.py").write_text(PLUG)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "plug"))
    write_series(phantom(3, (3.0, 3.0, 6.0), "chest"), tmp_path / "ct")
    settings = load_settings(config)
    spool, ledger = open_store(settings)
    receive_instances(spool, ledger, read_headers(sorted((tmp_path / "ct").iterdir())))
    workers = WorkerPool(settings.models, settings.work)
    pipeline = open_pipeline(settings, ledger, spool, load_rules(settings.rules_file, settings), workers)
    pipeline.completing.complete_due()
    pipeline.routing.route_complete()
    with structlog.testing.capture_logs() as log:
        assert pipeline.running.run_next_job()
    workers.close()
    (job,) = ledger.overview.jobs(5)
    assert job.state == JobState.ENCODED, job.reason
    (line,) = [each for each in log if each["event"] == "job"]
    (note,) = line["notes"]
    assert "no such instruction" in note
    view = ledger.overview.job(job.id)
    assert view.run_report.backend.startswith("torch")
    assert [(each.text, each.changes_answer) for each in view.run_report.notes] == [(note, True)]
    shown = CliRunner().invoke(main, ["--config", str(config), "job", str(job.id), "--json"], catch_exceptions=False)
    assert json.loads(shown.output)["run_report"]["notes"] == [{"text": note, "changes_answer": True}]
    deliveries = ledger.deliveries.due("pacs", view.created_at.replace(year=view.created_at.year + 1), 10)
    (report,) = [each.instance for each in deliveries if each.instance.kind is ResultKind.REPORT]
    assert note in texts(pydicom.dcmread(report.path))
    ledger.close()
