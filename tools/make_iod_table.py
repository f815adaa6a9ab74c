"""Write ``dicom_node/conformance/iods.json``: modules and attributes (PS3.3) of the objects the node reads and makes.

    python tools/make_iod_table.py

The tables are highdicom's, made from the source of the standard. It has them in a private module and in files of 23 MB,
so the node ships the few that its conformance statement needs; a test compares them with the installed highdicom.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom.uid import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE

TABLE = Path(__file__).resolve().parents[1] / "dicom_node" / "conformance" / "iods.json"
SOP_CLASSES = (
    CTImageStorage,
    SegmentationStorage,
    LABEL_MAP_SEGMENTATION_STORAGE,
    Comprehensive3DSRStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    EncapsulatedPDFStorage,
)


def table() -> dict[str, Any]:
    """Modules by SOP Class and attributes by module, an attribute below a sequence with a ``>`` for every level."""
    iods, attributes, names = get_iod_module_map(), get_module_attribute_map(), get_sop_class_iod_map()
    modules = {
        str(uid): [f"{module['key']} {module['usage']} {module['ie']}" for module in iods[names[uid]]]
        for uid in SOP_CLASSES
    }
    used = sorted({module.split()[0] for of_class in modules.values() for module in of_class})
    return {
        "modules": modules,
        "attributes": {
            name: [f"{'>' * len(each['path'])}{each['keyword']} {each['type']}" for each in attributes.get(name, [])]
            for name in used
        },
    }


def text() -> str:
    """The file."""
    return json.dumps(table(), indent=1) + "\n"


if __name__ == "__main__":
    TABLE.write_text(text(), encoding="utf-8")
