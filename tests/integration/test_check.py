"""``dicom-node check`` with real peers: findings about a destination whose viewer is OHIF on Orthanc."""

from __future__ import annotations

import pytest
import yaml
from pydicom.uid import SegmentationStorage

from dicom_node.app.check import run_checks
from dicom_node.constancy.baseline import described
from dicom_node.percentiles import OfModel
from dicom_node.settings import TissueModelSettings, WorkSettings
from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE
from dicom_node.work.models import describe_model
from tests.support.dicom_peers import scripted_pacs
from tests.support.ports import free_port
from tests.support.reference_percentiles import curve, references, written

OLD = (SegmentationStorage,)
NEW = (SegmentationStorage, LABEL_MAP_SEGMENTATION_STORAGE)


def findings(folder, port, forms, viewer="ohif_on_orthanc"):
    """The findings after the C-ECHO, with one rule for each form, by name."""
    settings = {
        "node": {"data_folder": "data"},
        "models": {"tissue": {"kind": "tissue"}},
        "destinations": {"pacs": {"host": "127.0.0.1", "port": port, "ae_title": "PACS", "viewer": viewer}},
    }
    rules = [
        {"name": form, "model": "tissue", "when": [], "destinations": [{"to": "pacs", "segmentation": form}]}
        for form in forms
    ]
    (folder / "node.yaml").write_text(yaml.safe_dump(settings))
    (folder / "rules.yaml").write_text(yaml.safe_dump({"rules": rules}))
    return {each.name: each for each in run_checks(folder / "node.yaml", described) if each.name.endswith(" in pacs")}


def test_label_maps_that_orthanc_refuses_are_a_problem_and_binary_is_a_limit(tmp_path):
    with scripted_pacs(classes=OLD) as (port, stored):
        found = findings(tmp_path, port, ["binary", "auto", "both", "none"])
    assert set(found) == {"BINARY SEG in pacs", "label maps in pacs"}
    binary, labelmap = found["BINARY SEG in pacs"], found["label maps in pacs"]
    assert binary.ok
    assert binary.detail.endswith("only where Columns is a multiple of 8, auto at any size: rules binary")
    assert not labelmap.ok
    assert "UnknownSopClassAccepted" in labelmap.detail
    assert labelmap.detail.endswith("rules auto, both")
    assert stored == []


def test_label_maps_that_orthanc_accepts_are_shown_at_any_size(tmp_path):
    with scripted_pacs(classes=NEW) as (port, _):
        found = findings(tmp_path, port, ["labelmap"])
    assert [(each.name, each.ok) for each in found.values()] == [("label maps in pacs", True)]


def with_percentiles(folder, *names):
    """The findings with one rule for each file of percentiles."""
    settings = {
        "node": {"data_folder": "data", "port": free_port()},
        "models": {"tissue": {"kind": "tissue"}},
        "destinations": {"pacs": {"host": "127.0.0.1", "port": free_port(), "ae_title": "PACS"}},
    }
    rules = [
        {"name": name, "model": "tissue", "when": [], "destinations": [{"to": "pacs", "percentiles": f"{name}.json"}]}
        for name in names
    ]
    (folder / "node.yaml").write_text(yaml.safe_dump(settings))
    (folder / "rules.yaml").write_text(yaml.safe_dump({"rules": rules}))
    return {each.name: each for each in run_checks(folder / "node.yaml", described)}


def test_percentiles_of_a_rule_must_be_of_its_model(tmp_path):
    tissue = describe_model("tissue", TissueModelSettings(kind="tissue"), WorkSettings())
    own = references((curve("lung", "volume_ml", "F", 1, 2),), model=OfModel(name="", version="", digest=tissue.digest))
    written(tmp_path / "own.json", own)
    written(tmp_path / "other.json", references(()))
    found = with_percentiles(tmp_path, "own", "other")
    of_own, of_other = found["percentiles of rule own"], found["percentiles of rule other"]
    assert of_own.ok
    assert of_own.detail == (
        f"{tmp_path}/own.json: cohort sample, 1 curves, version 1, sha256 {own.digest()}; research only"
    )
    assert not of_other.ok
    assert f"expected {tissue.digest}: values of different models can't be compared" in of_other.detail


def test_a_broken_file_of_percentiles_is_a_fault_of_the_rules(tmp_path):
    (tmp_path / "p.json").write_text("{}")
    found = with_percentiles(tmp_path, "p")
    assert not found["rules"].ok
    assert "p.json is no file of reference percentiles of dicom-node" in found["rules"].detail
    assert not [name for name in found if name.startswith("percentiles")]


@pytest.mark.parametrize("viewer", ["other", "ohif_on_orthanc"])
def test_no_finding_for_another_viewer_or_without_a_response(viewer, tmp_path):
    with scripted_pacs(classes=OLD) as (port, _):
        if viewer == "other":
            assert findings(tmp_path, port, ["binary", "auto"], viewer) == {}
    assert findings(tmp_path, port, ["binary", "auto"], viewer) == {}
