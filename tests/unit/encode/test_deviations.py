"""A run that deviated from its plan says so in its results, under separate UIDs; a regular run changes nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dicom_node.encode.run import encode
from dicom_node.types import EncodedResult, ResultKind, ResultRequest, SegmentationForm
from inference.types import RunNote, RunReport
from tests.support.analysis_results import CONTEXT, geometry, measured, reconstruction, segmentation

if TYPE_CHECKING:
    from pydicom import Dataset

NAMES = {3: "kidney_left", 7: "kidney_right"}
GRID = geometry((6, 12, 16))
REQUEST = ResultRequest(SegmentationForm.BOTH, contours=("organ",), document=True)
FALL_BACK = RunNote("OpenVINO failed, torch computed in float32 instead", changes_answer=True)
SAID = "Labels may differ from those of a regular run: OpenVINO failed, torch computed in float32 instead."


def results(*notes: RunNote) -> dict[ResultKind, EncodedResult]:
    labels = np.zeros(GRID.shape_zyx, dtype=np.uint8)
    labels[2:4, 3:6, 3:7] = 3
    source = reconstruction(GRID)
    planned = segmentation(GRID, NAMES, labels)
    run = RunReport("torch 2.13.0", "CPU", "float32", notes, {"network": 1.5})
    made = encode(source, replace(planned, run=run), measured(source, planned), CONTEXT, {"pacs": REQUEST})
    return {result.kind: result for result in made}


@pytest.fixture(scope="module")
def unreported() -> dict[ResultKind, EncodedResult]:
    labels = np.zeros(GRID.shape_zyx, dtype=np.uint8)
    labels[2:4, 3:6, 3:7] = 3
    source = reconstruction(GRID)
    planned = segmentation(GRID, NAMES, labels)
    assert planned.run is None
    made = encode(source, planned, measured(source, planned), CONTEXT, {"pacs": REQUEST})
    return {result.kind: result for result in made}


def comments(dataset: Dataset) -> list[str]:
    found = [dataset.TextValue] if "TextValue" in dataset else []
    return found + [text for child in dataset.get("ContentSequence", ()) for text in comments(child)]


@pytest.mark.parametrize("notes", [(), (RunNote("the model was loaded again"),)], ids=["as planned", "same answer"])
def test_run_report_without_deviation_changes_no_byte(notes, unreported) -> None:
    made = results(*notes)
    assert {kind: bytes(result.content) for kind, result in made.items()} == {
        kind: bytes(result.content) for kind, result in unreported.items()
    }


def test_deviation_that_changed_the_labels_is_stated_in_every_result(unreported) -> None:
    made = results(RunNote("the model was loaded again"), FALL_BACK, FALL_BACK)
    assert comments(made[ResultKind.REPORT].dataset).count(SAID) == 1
    assert made[ResultKind.SEGMENTATION].dataset.ImageComments.count(SAID) == 1
    assert made[ResultKind.LABELMAP].dataset.ImageComments.count(SAID) == 1
    assert made[ResultKind.CONTOURS].dataset.StructureSetDescription.count(SAID) == 1
    assert not any("loaded again" in text for text in comments(made[ResultKind.REPORT].dataset))
    assert made.keys() == unreported.keys()


def test_changed_voxels_have_other_uids(unreported) -> None:
    made, again = results(FALL_BACK), results(FALL_BACK)
    other = results(RunNote("the GPU was lost, the CPU computed in its place", changes_answer=True))
    for kind, result in made.items():
        assert len({each[kind].sop_instance_uid for each in (made, other, unreported)}) == 3
        assert len({each[kind].series_instance_uid for each in (made, other, unreported)}) == 3
        assert bytes(result.content) == bytes(again[kind].content)
    (segment,) = made[ResultKind.SEGMENTATION].dataset.SegmentSequence
    (planned,) = unreported[ResultKind.SEGMENTATION].dataset.SegmentSequence
    assert segment.TrackingUID != planned.TrackingUID
