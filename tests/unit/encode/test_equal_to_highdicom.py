"""What we write as bytes equals highdicom's output for the whole label map and for every group, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.uid import SegmentationStorage

from dicom_node.encode.identity import RunIdentity
from dicom_node.encode.provenance import Provenance, statements
from dicom_node.encode.run import encode
from dicom_node.encode.seg.attributes import highdicom_segmentation
from dicom_node.encode.seg.descriptions import segment_description
from dicom_node.encode.segments import Finding, Rank, Segment, SegmentationReference, present_segments
from dicom_node.encode.source.series import prepare
from dicom_node.encode.sr.report import highdicom_report, report_file
from dicom_node.standard.part10 import file_of
from dicom_node.types import Reconstruction, ResultKind
from inference.measure import measure
from inference.structures import STRUCTURES, paper_labels
from tests.support.analysis_results import (
    CONTEXT,
    GRIDS,
    MODEL,
    ORIENTATIONS,
    findings,
    geometry,
    measured,
    reconstruction,
    segmentation,
)

if TYPE_CHECKING:
    from inference.types import Measurements, Segmentation

INSIDE = Rank(12.3, 200, "Women.", "A cohort.")
BEYOND = Rank("<3", 200, "Other women.", "A cohort.")
NAMES = {3: "kidney_left", 7: "kidney_right", 9: "kidney_cyst_left", 200: "body_fat", 201: "liver"}


class Pair:
    """The results of one run as we write them, and as made by highdicom alone."""

    def __init__(self, source: Reconstruction, labels: Segmentation, measurements: Measurements | None = None) -> None:
        measurements = measurements or measured(source, labels)
        results = encode(source, labels, measurements, CONTEXT)
        self.ours = {result.kind: bytes(result.content) for result in results}
        prepared = prepare(source)
        identity = RunIdentity.of(prepared.series_instance_uid, MODEL, CONTEXT)
        said = statements(CONTEXT, MODEL, len(prepared.planes), source.notes)
        provenance = Provenance(identity, CONTEXT, prepared, said)
        segments = present_segments(labels, measurements, identity)
        seg = highdicom_segmentation(
            ResultKind.SEGMENTATION,
            numbers(labels.labels_zyx, segments),
            [segment_description(s, MODEL) for s in segments],
            provenance,
            prepared.planes,
        )
        length = (seg.Rows * seg.Columns * seg.NumberOfFrames + 7) // 8
        # PS3.5 section 8.1.1: the padding byte of Pixel Data is 00H; highdicom pads with the character "0"
        seg.add_new("PixelData", "OB", seg.PixelData[:length] + bytes(length % 2))
        found = findings(segments, seg)
        sr = highdicom_report(found, found, measurements.not_found, provenance, prepared.instances)
        self.highdicom = {ResultKind.SEGMENTATION: file_of(seg), ResultKind.REPORT: file_of(sr)}


def numbers(labels_zyx: np.ndarray, segments: tuple[Segment, ...]) -> np.ndarray:
    table = np.zeros(256, dtype=np.uint8)
    for segment in segments:
        table[segment.label] = segment.number
    return table[labels_zyx]


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "one voxel"])
def test_results_equal_highdicoms_on_every_grid(name: str) -> None:
    grid, multi_frame = GRIDS[name]
    pair = Pair(reconstruction(grid, multi_frame=multi_frame), segmentation(grid, NAMES))
    assert pair.ours == pair.highdicom


@pytest.mark.parametrize("name", ["axial", "one plane", "multi-frame"])
def test_results_equal_highdicoms_for_a_single_structure(name: str) -> None:
    grid, multi_frame = GRIDS[name]
    labels_zyx = np.zeros(grid.shape_zyx)
    labels_zyx[::2, 2:5, 3:9] = 201
    pair = Pair(reconstruction(grid, multi_frame=multi_frame), segmentation(grid, NAMES, labels_zyx))
    assert pair.ours == pair.highdicom


@pytest.mark.parametrize("name", ["prone", "feet first", "oblique", "tilted", "multi-frame"])
def test_results_equal_highdicoms_with_absent_structures_and_empty_planes(name: str) -> None:
    """Segment numbers then differ from labels, and position indices from plane indices."""
    grid, multi_frame = GRIDS[name]
    labels_zyx = np.zeros(grid.shape_zyx)
    labels_zyx[[1, 4], 2:5, 3:9] = 7
    labels_zyx[3:, -1, -1] = 201
    pair = Pair(reconstruction(grid, multi_frame=multi_frame), segmentation(grid, NAMES, labels_zyx))
    assert pair.ours == pair.highdicom


@settings(max_examples=12, deadline=timedelta(seconds=10))
@given(st.data())
def test_results_equal_highdicoms_for_any_label_map(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(3, 9), st.integers(3, 9)))
    labels_zyx = data.draw(arrays(np.uint8, shape, elements=st.sampled_from([0, *NAMES])))
    assume(labels_zyx.any())
    shear = data.draw(st.sampled_from([(0.0, 0.0), (0.0, 0.9), (0.3, -0.9)]))
    grid = geometry(shape, data.draw(st.sampled_from(list(ORIENTATIONS.values()))), shear)
    source = reconstruction(grid, multi_frame=data.draw(st.booleans()))
    pair = Pair(source, segmentation(grid, NAMES, labels_zyx))
    assert pair.ours == pair.highdicom


def test_results_equal_highdicoms_for_all_structures_of_the_catalogue() -> None:
    names = {
        label: name for label, name in enumerate((structure.name for structure in STRUCTURES), start=1) if label < 256
    }
    assert set(paper_labels().values()) <= set(names.values())
    grid = geometry((3, 16, 25))
    labels = segmentation(grid, names, np.resize(np.array(list(names), dtype=np.uint8), grid.shape_zyx))
    pair = Pair(reconstruction(grid), labels)
    assert pair.ours == pair.highdicom


@pytest.mark.parametrize("ibsi_codes", [False, True])
@pytest.mark.parametrize("refers", [False, True])
@pytest.mark.parametrize("with_shape", [False, True])
@pytest.mark.parametrize("ranks", [(), (BEYOND,), (None, INSIDE, BEYOND)])
def test_reports_of_every_kind_equal_highdicoms(
    *, ibsi_codes: bool, refers: bool, with_shape: bool, ranks: tuple[Rank | None, ...]
) -> None:
    grid = geometry((4, 12, 16))
    source, labels = reconstruction(grid), segmentation(grid, NAMES)
    measurements = measure(source.source, labels, with_shape=with_shape)
    prepared = prepare(source)
    identity = RunIdentity.of(prepared.series_instance_uid, MODEL, CONTEXT)
    provenance = Provenance(identity, CONTEXT, prepared, ())
    segments = tuple(
        replace(segment, volume_rank=rank, mean_hu_rank=other_rank)
        for segment, rank, other_rank in zip(
            present_segments(labels, measurements, identity),
            cycle(ranks or (None,)),
            cycle(ranks[1:] or (None,)),
            strict=False,
        )
    )
    one, other = (SegmentationReference(SegmentationStorage, f"1.2.{n}", f"1.3.{n}") for n in (1, 22))
    found = tuple(Finding(segment, (one if segment.number < 3 else other) if refers else None) for segment in segments)
    ours = report_file(found, ("liver",), provenance, ibsi_codes=ibsi_codes)
    theirs = highdicom_report(found, found, ("liver",), provenance, prepared.instances, ibsi_codes=ibsi_codes)
    assert bytes(ours) == file_of(theirs)


@settings(max_examples=10, deadline=timedelta(seconds=10))
@given(st.lists(st.tuples(*[st.floats(-1e300, 1e300)] * 5, st.booleans()), min_size=2, max_size=2))
def test_reports_equal_highdicoms_for_any_finite_measurement(
    drawn: list[tuple[float, float, float, float, float, bool]],
) -> None:
    grid = geometry((4, 12, 16))
    labels = segmentation(grid, {3: NAMES[3], 201: NAMES[201]})
    source = reconstruction(grid)
    measurements = measured(source, labels)
    keys = ("volume_ml", "mean_hu", "sd_hu", "min_hu", "median_hu", "truncated")
    structures = tuple(
        replace(structure, **dict(zip(keys, values, strict=True)))
        for structure, values in zip(measurements.structures, drawn, strict=True)
    )
    pair = Pair(source, labels, replace(measurements, structures=structures))
    assert pair.ours[ResultKind.REPORT] == pair.highdicom[ResultKind.REPORT]
