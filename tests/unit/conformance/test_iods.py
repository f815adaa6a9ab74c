"""The table of modules and attributes that ships with the node."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage

from dicom_node.conformance import iods

ROOT = Path(__file__).resolve().parents[3]
TOOL = runpy.run_path(str(ROOT / "tools" / "make_iod_table.py"))


def test_table_equals_the_tools_output_for_the_installed_highdicom():
    assert TOOL["TABLE"].read_text(encoding="utf-8") == TOOL["text"](), "python tools/make_iod_table.py"


def test_every_attribute_keeps_its_path_and_type():
    """As in highdicom's own table, which states a path for every attribute."""
    highdicom = TOOL["get_module_attribute_map"]()
    for module in {module for uid in TOOL["SOP_CLASSES"] for module in iods.modules(uid)}:
        stated = {(*each["path"], each["keyword"]): each["type"] for each in highdicom.get(module.key, [])}
        assert iods.attribute_types(module.key) == stated


def test_patient_and_image_are_modules_of_ct_images():
    entities = {module.key: (module.usage, module.entity) for module in iods.modules(CTImageStorage)}
    assert entities["patient"] == ("M", "Patient")
    assert entities["frame-of-reference"] == ("M", "Frame of Reference")
    assert iods.attribute_types("patient")["PatientID",] == "2"


def test_other_sop_classes_are_not_in_the_table():
    with pytest.raises(KeyError):
        iods.modules("1.2.3")
