"""``dicom-node check`` with real peers: findings about a destination whose viewer is OHIF on Orthanc."""

from __future__ import annotations

import pytest
import yaml
from pydicom.uid import SegmentationStorage

from dicom_node.app.check import run_checks
from dicom_node.constancy.baseline import described
from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE
from tests.support.dicom_peers import scripted_pacs

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


@pytest.mark.parametrize("viewer", ["other", "ohif_on_orthanc"])
def test_no_finding_for_another_viewer_or_without_a_response(viewer, tmp_path):
    with scripted_pacs(classes=OLD) as (port, _):
        if viewer == "other":
            assert findings(tmp_path, port, ["binary", "auto"], viewer) == {}
    assert findings(tmp_path, port, ["binary", "auto"], viewer) == {}
