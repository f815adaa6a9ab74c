"""The readers of results, against results written by the node's encoder."""

import numpy as np
import pytest
from pydicom import dcmread

from dicom_node.encode.run import encode
from dicom_node.errors import ResultUnreadable
from dicom_node.results import read_report, read_segmentation
from dicom_node.types import ResultRequest, SegmentationForm
from inference.measure import measure
from inference.structures import STRUCTURES
from inference.types import Geometry
from tests.support.analysis_results import CONTEXT, ORIENTATIONS, geometry, reconstruction, segmentation

NAMES = {3: "kidney_left", 7: "kidney_right", 200: "liver"}
FORMS = (SegmentationForm.BINARY, SegmentationForm.LABELMAP)


def written(tmp_path, grid, form=SegmentationForm.BINARY, labels_zyx=None):
    """Label map and measurements, and the SEG and report files."""
    source = reconstruction(grid)
    labels = segmentation(grid, NAMES, labels_zyx)
    measurements = measure(source.source, labels)
    paths = []
    for result in encode(source, labels, measurements, CONTEXT, {"pacs": ResultRequest(segmentation=form)}):
        path = tmp_path / f"{result.kind}.dcm"
        path.write_bytes(result.content)
        paths.append(path)
    return labels, measurements, *paths


def by_name(labels_zyx, names_by_label):
    names = np.array([""] * 256, dtype=object)
    for label, name in names_by_label.items():
        names[label] = name
    return names[labels_zyx]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("shape", [(5, 12, 16), (4, 9, 13)])  # the second: frames that do not end on a byte boundary
def test_every_voxel_is_read_back_in_place(tmp_path, orientation, shape, form):
    grid = geometry(shape, ORIENTATIONS[orientation])
    labels, _, seg, _ = written(tmp_path, grid, form)
    stored = read_segmentation(seg, grid)
    assert np.array_equal(by_name(stored.labels_zyx, stored.names_by_label), by_name(labels.labels_zyx, NAMES))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_without_the_images_the_grid_is_taken_from_the_frames(tmp_path, orientation, form):
    """A liver in planes 1 and 3 of six: the other planes have no frame."""
    grid = geometry((6, 12, 16), ORIENTATIONS[orientation])
    labels_zyx = np.zeros(grid.shape_zyx, np.uint8)
    labels_zyx[1, 2:4, 3:9] = labels_zyx[3, 5:9, 2:5] = 200
    *_, seg, _ = written(tmp_path, grid, form, labels_zyx)
    stored = read_segmentation(seg)
    expected = grid.affine_lps.copy()
    expected[:3, 3] += grid.affine_lps[:3, 2]
    assert stored.geometry.same_grid(Geometry((3, 12, 16), expected))
    (liver,) = (label for label, name in stored.names_by_label.items() if name == "liver")
    assert np.array_equal(stored.labels_zyx == liver, labels_zyx[1:4] == 200)


def test_values_of_the_report_equal_the_measurements(tmp_path):
    _, measurements, seg, sr = written(tmp_path, geometry())
    structures = read_report(sr)
    segments = {segment.tracking_uid: segment.name for segment in read_segmentation(seg).segments}
    assert [segments[stored.tracking_uid] for stored in structures] == [stored.name for stored in structures]
    for stored, measured in zip(structures, measurements.structures, strict=True):
        assert stored.name == measured.name
        assert stored.volume_ml == pytest.approx(measured.volume_ml, rel=1e-6)
        assert stored.mean_hu == pytest.approx(measured.mean_hu, abs=1e-3)
        assert {value.derivation_meaning for value in stored.values} >= {"Mean", "Median", "Minimum", "Maximum"}


def test_colours_equal_those_of_the_catalogue(tmp_path):
    *_, seg, _ = written(tmp_path, geometry())
    rgb = {entry.name: entry.rgb for entry in STRUCTURES}
    for segment in read_segmentation(seg).segments:
        assert np.allclose(np.array(segment.rgb) * 255, rgb[segment.name], atol=3)


def test_result_of_another_ct_is_refused(tmp_path):
    *_, seg, _ = written(tmp_path, geometry())
    grid = geometry()
    affine = grid.affine_lps.copy()
    affine[2, 3] += 1.0
    with pytest.raises(ResultUnreadable, match="not a plane of the images"):
        read_segmentation(seg, Geometry(grid.shape_zyx, affine))
    with pytest.raises(ResultUnreadable, match=r"frames are .* expected 10 x 16"):
        read_segmentation(seg, geometry((5, 10, 16)))


@pytest.mark.parametrize("form", FORMS)
def test_result_with_other_axes_is_refused_even_with_its_first_pixel_in_place(tmp_path, form):
    grid = geometry((5, 12, 12), spacing_xyz_mm=(0.8, 0.8, 2.5))
    *_, seg, _ = written(tmp_path, grid, form)
    x, y, z = grid.affine_lps[:3, :3].T
    for axes in ((y, x, -z), (x * 1.02, y, z)):
        affine = np.column_stack([*axes, grid.affine_lps[:3, 3]])
        other = Geometry(grid.shape_zyx, np.vstack([affine, [0, 0, 0, 1]]))
        with pytest.raises(ResultUnreadable, match=r"not a plane of the images|columns and rows are"):
            read_segmentation(seg, other)
    dataset = dcmread(seg)
    groups = dataset.SharedFunctionalGroupsSequence[0]
    groups.PixelMeasuresSequence[0].PixelSpacing = [0.8, 0.82]
    dataset.save_as(seg)
    with pytest.raises(ResultUnreadable, match=r"columns and rows are \[\[0\.82, .* those of the images \[\[0\.8, "):
        read_segmentation(seg, grid)


def test_other_object_is_refused_and_its_kind_named(tmp_path):
    *_, seg, sr = written(tmp_path, geometry())
    text = tmp_path / "text"
    text.write_text("no DICOM")
    for read, path, says in (
        (read_segmentation, sr, "expected a binary segmentation or a label map, found SR"),
        (read_report, seg, "expected a Structured Report, found SEG"),
        (read_report, text, "text is not a DICOM file"),
        (read_report, tmp_path / "nowhere", "can't read .*nowhere: No such file"),
    ):
        with pytest.raises(ResultUnreadable, match=says):
            read(path)


def test_segments_that_overlap_are_refused(tmp_path):
    *_, seg, _ = written(tmp_path, geometry())
    dataset = dcmread(seg)
    frames = dataset.PerFrameFunctionalGroupsSequence
    segments = [frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber for frame in frames]
    other = next(index for index, segment in enumerate(segments) if segment != segments[0])
    frames[other].PlanePositionSequence = frames[0].PlanePositionSequence
    dataset.PixelData = b"\xff" * len(dataset.PixelData)
    dataset.save_as(seg)
    with pytest.raises(ResultUnreadable, match="overlap"):
        read_segmentation(seg)
