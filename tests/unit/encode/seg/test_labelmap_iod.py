"""Label maps of every kind of source against the table of their IOD, and the table against highdicom's."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import Dataset

from dicom_node.encode.run import encode
from dicom_node.reconstruct import ReconstructionLimits, reconstruct
from dicom_node.standard.files import read_series_folder
from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE, Reconstruction, ResultRequest, SegmentationForm
from inference.structures import paper_labels
from tests.support.analysis_results import CONTEXT, GRIDS, measured, reconstruction, segmentation, with_headers
from tests.unit.encode.seg.labelmap_iod import TABLE, violations

REAL_SERIES = ("derived/legacy_enhanced_CT_STS_008", "theibsi+data_sets/ibsi2_orientation")
MODULES_OF_OTHER_OBJECTS = {
    "clinical-trial-subject",
    "clinical-trial-study",
    "clinical-trial-series",
    "frame-extraction",
    "multi-resolution-pyramid",
    "microscope-slide-layer-tile-organization",
    "specimen",
}


def labelmap(source: Reconstruction, *, background: bool = True) -> Dataset:
    """A label map with all structures of the paper for which there are voxels, and an empty plane at each end."""
    names = {**paper_labels(), 201: "kidney_cyst_left"}
    grid = source.source.geometry
    labels_zyx = np.resize(np.array([*sorted(names), 0], dtype=np.uint8), grid.shape_zyx)
    if len(labels_zyx) > 2:
        labels_zyx[[0, -1]] = 0
    labels = segmentation(grid, names, labels_zyx)
    request = ResultRequest(SegmentationForm.LABELMAP, report=False, background=background)
    (result,) = encode(source, labels, measured(source, labels), CONTEXT, {"pacs": request})
    return result.dataset


def lossy_and_sparse(header: Dataset) -> None:
    for keyword in ("BodyPartExamined", "StudyID", "StudyDate", "Manufacturer", "PositionReferenceIndicator"):
        delattr(header, keyword)
    header.LossyImageCompression, header.LossyImageCompressionRatio = "01", "10"
    header.LossyImageCompressionMethod = "ISO_10918_1"


@pytest.mark.parametrize("name", GRIDS)
def test_label_map_has_what_the_standard_requires_on_every_grid(name: str) -> None:
    grid, multi_frame = GRIDS[name]
    assert list(violations(labelmap(reconstruction(grid, multi_frame=multi_frame)))) == []


@pytest.mark.parametrize("background", [True, False])
def test_label_map_of_a_sparse_source_has_what_the_standard_requires(*, background: bool) -> None:
    dataset = labelmap(with_headers(reconstruction(), lossy_and_sparse), background=background)
    assert (dataset.LossyImageCompression, dataset.LossyImageCompressionRatio) == ("01", 10)
    assert list(violations(dataset)) == []


@pytest.mark.parametrize("name", REAL_SERIES)
def test_label_map_of_a_real_series_has_what_the_standard_requires(name: str, shared_data: Path) -> None:
    (series,) = read_series_folder(shared_data / name)
    dataset = labelmap(reconstruct(series, ReconstructionLimits(minimum_planes=2)))
    assert list(violations(dataset)) == []


def test_table_detects_missing_empty_forbidden_and_invalid_attributes() -> None:
    dataset = labelmap(reconstruction())
    del dataset.SegmentSequence[2].SegmentLabel
    dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = None
    dataset.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence = [Dataset()]
    dataset.BitsStored = 7
    del dataset.PatientID
    assert sorted(violations(dataset)) == [
        "BitsStored (C.8.20.2): is 7, expected one of (8,)",
        "PatientID (C.7.1.1): type 2 is missing",
        ("PerFrameFunctionalGroupsSequence/PlanePositionSequence/ImagePositionPatient (C.7.6.16.2.3): type 1 is empty"),
        "SegmentSequence/SegmentLabel (C.8.20.4): type 1 is missing",
        (
            "SharedFunctionalGroupsSequence/SegmentIdentificationSequence (C.8.20.3.1): "
            "is there, though its condition does not hold"
        ),
    ]


def test_table_contains_every_required_attribute_of_highdicoms_table() -> None:
    """highdicom has the modules of PS3.3 2024c as data: their top-level type 1 and 2 attributes must be in ours."""
    folder = Path(highdicom.__file__).parent / "_standard"
    iod_of, modules_of, attributes_of = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("sop_class_iod_map", "iod_module_map", "module_attribute_map")
    )
    ours = {(requirement.where, requirement.keyword): requirement.type for requirement in TABLE}
    paths = {where for where, _ in ours}
    seen = 0
    for module in modules_of[iod_of[LABEL_MAP_SEGMENTATION_STORAGE]]:
        if module["key"] in MODULES_OF_OTHER_OBJECTS or module["usage"] == "U":
            continue
        for attribute in attributes_of[module["key"]]:
            place = (tuple(attribute["path"]), attribute["keyword"])
            if attribute["type"] not in ("1", "2") or place[0] not in paths:
                continue
            if module["key"] in ("icc-profile", "palette-color-lookup-table"):
                assert ours.get(place, "1C") == "1C"  # for colour images
                continue
            if place[0] and place[0][-1].endswith("GroupsSequence"):
                continue  # which macros belong to which groups is in table A.51-2, not in highdicom's table
            assert place in ours, place
            assert ours[place][0] <= attribute["type"], place
            seen += 1
    assert seen > 60
