"""Every kind of result checked against the modules of its IOD in PS3.3 2024c, taken from highdicom's tables.

dciodvfy implements the standard of 2022: what it calls foreign to an IOD must be in the current one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import highdicom
import pytest

from dicom_node.types import ResultKind
from tests.integration.encode.test_validation import SERIES, results
from tests.support.analysis_results import GRIDS, reconstruction, with_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

TREES_OF_ANY_DEPTH = {"ContentSequence"}
"""Content Items of an SR: their attributes depend on the Value Type; highdicom, dcmqi and DCMTK parse them."""
OTHER_VALUE_TYPES = {
    *("ConceptCodeSequence", "GraphicData", "GraphicType", "MeasuredValueSequence", "ReferencedFrameOfReferenceUID"),
    *("ReferencedSOPSequence", "TabulatedValuesSequence", "TemporalRangeType"),
}
"""The tables list the attributes of all Value Types for the root of an SR, which is a container."""
ABSENT = (None, "", b"", [])


@cache
def modules(sop_class_uid: str) -> dict[tuple[str, ...], dict[str, set[str]]]:
    """Attribute types by path and keyword. Top-level attributes of conditional modules count as optional, too."""
    folder = Path(highdicom.__file__).parent / "_standard"
    iod_of, modules_of, attributes_of = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("sop_class_iod_map", "iod_module_map", "module_attribute_map")
    )
    found: dict[tuple[str, ...], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for module in modules_of[iod_of[sop_class_uid]]:
        for attribute in attributes_of[module["key"]]:
            path = tuple(attribute["path"])
            needed = module["usage"] == "M" or path
            found[path][attribute["keyword"]].add(attribute["type"] if needed else "3")
    return found


def faults(item: Dataset, place: tuple[str, ...], known: dict[tuple[str, ...], dict[str, set[str]]]) -> Iterator[str]:
    here = known[place]
    for element in item:
        path = "/".join((*place, element.keyword))
        if element.keyword not in here:
            yield f"{path} is foreign"
        elif element.VR == "SQ" and element.keyword not in TREES_OF_ANY_DEPTH:
            for child in element.value:
                yield from faults(child, (*place, element.keyword), known)
    if place and place[-1].endswith("FunctionalGroupsSequence"):
        return  # the tables do not say which macro belongs to which groups
    for keyword, types in here.items():
        if "1" in types and item.get(keyword) in ABSENT:
            yield f"{'/'.join((*place, keyword))} of type 1 is missing"
        if "2" in types and keyword not in item:
            yield f"{'/'.join((*place, keyword))} of type 2 is missing"


@pytest.mark.parametrize("name", ["typical", "oblique, almost no attributes", "multi-frame, tilted, lossy"])
def test_no_attribute_is_missing_or_foreign(name: str) -> None:
    grid_name, change = SERIES[name]
    grid, multi_frame = GRIDS[grid_name]
    source = reconstruction(grid, multi_frame=multi_frame)
    if change is not None:
        with_headers(source, change)
    kinds = set()
    for result in results(source):
        dataset = result.dataset
        found = set(faults(dataset, (), modules(str(dataset.SOPClassUID))))
        if "ContentSequence" in dataset:
            found = {fault for fault in found if fault.split()[0] not in OTHER_VALUE_TYPES}
        assert (result.kind, found) == (result.kind, set())
        kinds.add(result.kind)
    assert kinds == set(ResultKind)


def test_missing_empty_and_foreign_attributes_are_detected() -> None:
    dataset = next(iter(results(reconstruction()))).dataset
    del dataset.PatientID
    dataset.SegmentSequence[1].SegmentLabel = ""
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].Exposure = 3
    assert set(faults(dataset, (), modules(str(dataset.SOPClassUID)))) == {
        "PatientID of type 2 is missing",
        "SegmentSequence/SegmentLabel of type 1 is missing",
        "SharedFunctionalGroupsSequence/PixelMeasuresSequence/Exposure is foreign",
    }
