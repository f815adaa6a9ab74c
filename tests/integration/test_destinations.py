"""From rules.yaml to the peers: each destination gets what its rule requests, and a report on what it received."""

from __future__ import annotations

from contextlib import ExitStack, closing

import pytest
import structlog
import yaml
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_node.app.stores import open_store
from dicom_node.app.working import open_pipeline
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.store.states import JobState
from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE
from dicom_node.work.pool import WorkerPool
from tests.support.dicom_peers import scripted_pacs
from tests.support.ports import free_port
from tests.support.received_series import receive

REPORT_AND_SEG = (SegmentationStorage, Comprehensive3DSRStorage)
EVERYTHING = (*REPORT_AND_SEG, LABEL_MAP_SEGMENTATION_STORAGE)


def configured(folder, entries, ports, viewer="other"):
    settings = {
        "node": {"data_folder": "data"},
        "completion": {"regular_quiet_s": 0, "otherwise_quiet_s": 0},
        "models": {"tissue": {"kind": "tissue"}},
        "destinations": {
            name: {"host": "127.0.0.1", "port": port, "ae_title": "PACS", "viewer": viewer}
            for name, port in ports.items()
        },
    }
    rule = {"name": "all", "model": "tissue", "when": [], "destinations": entries}
    (folder / "node.yaml").write_text(yaml.safe_dump(settings))
    (folder / "rules.yaml").write_text(yaml.safe_dump({"rules": [rule]}))
    return load_settings(folder / "node.yaml")


@pytest.fixture
def delivered(tmp_path):
    """What a run sends to each destination: ``delivered(entries, classes)``, both by name."""

    def run(entries, classes, step_mm=2.5, state=JobState.DELIVERED):
        with ExitStack() as peers:
            opened = {name: peers.enter_context(scripted_pacs(classes=known)) for name, known in classes.items()}
            ports = {name: port for name, (port, _) in opened.items()}
            settings = configured(tmp_path, entries, ports)
            spool, ledger = open_store(settings)
            peers.callback(ledger.close)
            receive(spool, ledger, tmp_path / "ct", 1, step_mm)
            workers = WorkerPool(settings.models, settings.work)
            peers.callback(workers.close)
            rules = load_rules(settings.rules_file, settings)
            pipeline = open_pipeline(settings, ledger, spool, rules, workers)
            pipeline.completing.complete_due()
            pipeline.routing.route_complete()
            assert pipeline.running.run_next_job()
            for name in opened:
                pipeline.delivering.deliver(name)
            (job,) = ledger.overview.jobs(2)
            assert job.state is state, job
        return {name: [event.dataset for event, _ in stored] for name, (_, stored) in opened.items()}

    return run


def kinds(datasets):
    return [str(dataset.SOPClassUID) for dataset in datasets]


def referred(sr):
    """SOP Instances referenced by the Measurement Groups of a report."""
    found = set()

    def walk(item):
        for sop in item.get("ReferencedSOPSequence") or ():
            if "ReferencedSegmentNumber" in sop:
                found.add(sop.ReferencedSOPInstanceUID)
        for child in item.get("ContentSequence") or ():
            walk(child)

    walk(sr)
    return found


def test_each_destination_gets_what_its_rule_requests_and_it_accepts(delivered) -> None:
    entries = [
        "plain",
        {"to": "new", "segmentation": "auto"},
        {"to": "old", "segmentation": "auto"},
        {"to": "viewer", "segmentation": "binary", "structures": ["soft_tissue"], "report": False},
    ]
    classes = {"plain": EVERYTHING, "new": EVERYTHING, "old": REPORT_AND_SEG, "viewer": REPORT_AND_SEG}
    got = delivered(entries, classes)
    assert kinds(got["plain"]) == kinds(got["old"]) == list(REPORT_AND_SEG)
    assert kinds(got["new"]) == [LABEL_MAP_SEGMENTATION_STORAGE, Comprehensive3DSRStorage]
    assert kinds(got["viewer"]) == [SegmentationStorage]
    (seg,) = got["viewer"]
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["soft_tissue"]
    assert [d.SOPInstanceUID for d in got["plain"]] == [d.SOPInstanceUID for d in got["old"]]
    for name in ("plain", "new", "old"):
        seg, sr = got[name]
        assert referred(sr) == {seg.SOPInstanceUID}


def test_peer_that_stops_accepting_label_maps_gets_binary_after_one_refusal(tmp_path) -> None:
    port = free_port()
    settings = configured(tmp_path, [{"to": "pacs", "segmentation": "auto"}], {"pacs": port})
    spool, ledger = open_store(settings)
    workers = WorkerPool(settings.models, settings.work)
    pipeline = open_pipeline(settings, ledger, spool, load_rules(settings.rules_file, settings), workers)

    def run(name, hu):
        receive(spool, ledger, tmp_path / name, hu)
        pipeline.completing.complete_due()
        pipeline.routing.route_complete()
        assert pipeline.running.run_next_job()

    with closing(ledger), closing(workers):
        with scripted_pacs(classes=EVERYTHING, port=port):
            run("first", 1)
        with scripted_pacs(classes=REPORT_AND_SEG, port=port) as (_, stored):
            pipeline.delivering.deliver("pacs")
            run("second", 2)
            pipeline.delivering.deliver("pacs")
    assert kinds(event.dataset for event, _ in stored) == [Comprehensive3DSRStorage, *REPORT_AND_SEG]


@pytest.mark.parametrize(
    ("columns", "classes", "warned"), [(12, REPORT_AND_SEG, True), (16, REPORT_AND_SEG, False), (12, EVERYTHING, False)]
)
def test_automatic_binary_form_warns_where_ohif_on_orthanc_cannot_show_it(columns, classes, warned, tmp_path) -> None:
    with scripted_pacs(classes=classes) as (port, _):
        settings = configured(tmp_path, [{"to": "pacs", "segmentation": "auto"}], {"pacs": port}, "ohif_on_orthanc")
        spool, ledger = open_store(settings)
        workers = WorkerPool(settings.models, settings.work)
        with closing(ledger), closing(workers), structlog.testing.capture_logs() as log:
            series = receive(spool, ledger, tmp_path / "ct", 1, columns=columns)
            pipeline = open_pipeline(settings, ledger, spool, load_rules(settings.rules_file, settings), workers)
            pipeline.completing.complete_due()
            pipeline.routing.route_complete()
            assert pipeline.running.run_next_job()
    warnings = [line for line in log if line["event"] == "segmentation.not_shown"]
    assert [(line["destination"], line["columns"], line["series"]) for line in warnings] == (
        [("pacs", columns, series)] if warned else []
    )


def test_everything_of_one_run_is_delivered(delivered) -> None:
    classes = (*REPORT_AND_SEG, RTStructureSetStorage, SecondaryCaptureImageStorage, EncapsulatedPDFStorage)
    entries = [{"to": "pacs", "contours": ["soft_tissue"], "capture": True, "document": True, "notice": True}]
    got = kinds(delivered(entries, {"pacs": classes})["pacs"])
    assert set(got) == set(classes)
    assert [got.count(one) for one in (*REPORT_AND_SEG, RTStructureSetStorage, EncapsulatedPDFStorage)] == [1] * 4


def test_destinations_that_ask_for_notices_learn_why_a_series_was_rejected(delivered) -> None:
    entries = ["pacs", {"to": "archive", "notice": True}]
    classes = dict.fromkeys(("pacs", "archive"), REPORT_AND_SEG)
    got = delivered(entries, classes, step_mm=0.0, state=JobState.REJECTED)
    assert got["pacs"] == []
    (notice,) = got["archive"]
    assert notice.SeriesDescription.startswith("Not processed by tissue")
    assert "position" in notice.SeriesDescription
