"""Structure sets become label maps: ours voxel for voxel, others by the rules stated in the notes."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicom_node.encode.run import encode
from dicom_node.errors import ResultUnreadable
from dicom_node.labelmaps import ContourObject, Overlap, SegmentationObject, open_source
from dicom_node.types import ResultRequest, SegmentationForm
from inference.types import Geometry, InvalidValueError
from tests.support.analysis_results import CONTEXT, GRIDS, geometry, measured, reconstruction, segmentation

NAMES = {3: "kidney_left", 7: "kidney_right", 9: "liver", 200: "spleen"}
GRID = geometry((4, 20, 24))


def encoded(folder, grid, labels_zyx, *, multi_frame=False, form=SegmentationForm.NONE, contours=("organ",)):
    source = reconstruction(grid, multi_frame=multi_frame)
    labels = segmentation(grid, NAMES, labels_zyx)
    request = ResultRequest(segmentation=form, report=False, contours=contours)
    paths = []
    for result in encode(source, labels, measured(source, labels), CONTEXT, {"planning": request}):
        paths.append(folder / f"{result.kind}.dcm")
        paths[-1].write_bytes(result.content)
    return paths


def named(label_map):
    names = np.array([label_map.names_by_label.get(label, "") for label in range(256)])
    return names[label_map.labels_zyx]


def sponge(shape_zyx):
    """Rings, holes, single pixels, and pixels that touch only at corners."""
    z, y, x = np.indices(shape_zyx)
    labels = np.where((y + x + z) % 5 == 0, 3, 0).astype(np.uint8)
    labels[:, 1::4, 2:8] = 7
    labels[:, 3:10, 3:10] = 9
    labels[:, 5:7, 4:8] = 0
    labels[-1, -1, -1] = 200
    return labels


@pytest.mark.parametrize("name", GRIDS)
def test_our_structure_sets_are_restored_voxel_for_voxel(tmp_path, name):
    grid, multi_frame = GRIDS[name]
    labels = sponge(grid.shape_zyx)
    (path,) = encoded(tmp_path, grid, labels, multi_frame=multi_frame)
    read = open_source(path).read(grid)
    expected = np.array([NAMES.get(label, "") for label in range(256)])[labels]
    assert np.array_equal(named(read), expected)
    assert read.overlaps == ()
    assert not any("nested" in note for note in read.notes), "holes are keyholes"


@pytest.mark.parametrize("form", [SegmentationForm.BINARY, SegmentationForm.LABELMAP])
def test_seg_is_read_on_the_grid_of_the_ct(tmp_path, form):
    labels = sponge(GRID.shape_zyx)
    (path,) = encoded(tmp_path, GRID, labels, form=form, contours=())
    source = open_source(path)
    assert isinstance(source, SegmentationObject)
    read = source.read(GRID)
    assert np.array_equal(named(read), np.array([NAMES.get(label, "") for label in range(256)])[labels])


def drawn(folder, *rois, grid=GRID, kind="CLOSED_PLANAR"):
    """A structure set as drawn in a planning system: (name, contours of (column, row, plane))."""
    (path,) = encoded(folder, grid, sponge(grid.shape_zyx))
    dataset = dcmread(path)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois, start=1):
        item, drawing = Dataset(), Dataset()
        item.ROINumber, item.ROIName, item.ReferencedFrameOfReferenceUID = number, name, dataset.FrameOfReferenceUID
        drawing.ReferencedROINumber, drawing.ContourSequence = number, []
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType = kind
            contour.NumberOfContourPoints = len(points)
            places = np.c_[np.array(points, float), np.ones(len(points))] @ grid.affine_lps.T
            contour.ContourData = [f"{value:.4f}" for value in places[:, :3].ravel()]
            drawing.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(item)
        dataset.ROIContourSequence.append(drawing)
    path = folder / "drawn.dcm"
    dataset.save_as(path)
    return ContourObject(path)


def box(x0, y0, x1, y1, plane):
    return [(x0, y0, plane), (x1, y0, plane), (x1, y1, plane), (x0, y1, plane)]


@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_contour_inside_another_is_a_hole_and_noted(tmp_path, kind):
    contours = [box(1.5, 1.5, 11.5, 11.5, 1), box(3.5, 3.5, 6.5, 7.5, 1), box(1.5, 1.5, 4.5, 4.5, 3)]
    read = drawn(tmp_path, ("GTV 1", contours), kind=kind).read(GRID)
    expected = np.zeros(GRID.shape_zyx, bool)
    expected[1, 2:12, 2:12] = expected[3, 2:5, 2:5] = True
    expected[1, 4:8, 4:7] = False
    assert np.array_equal(read.labels_zyx == 1, expected)
    assert read.names_by_label == {1: "GTV 1"}
    assert read.notes == (
        "GTV 1: nested contours, by which 12 voxels are outside (even-odd rule)",
        "GTV 1: 1 planes between its contours have none",
    )


def test_overlapping_rois_are_reported(tmp_path):
    source = drawn(tmp_path, ("a", [box(1.5, 1.5, 5.5, 5.5, 0)]), ("b", [box(3.5, 3.5, 8.5, 8.5, 0)]), ("c", []))
    read = source.read(GRID)
    assert read.overlaps == (Overlap("a", "b", 4),)
    assert read.voxels_by_name == {"a": 12, "b": 25, "c": 0}
    renamed = read.renamed({"a": "liver", "x": "y"})
    assert renamed.voxels_by_name == {"liver": 12, "b": 25, "c": 0}
    assert renamed.relabelled({"b": 1, "liver": 2}).overlaps == (Overlap("liver", "b", 4),)
    with pytest.raises(InvalidValueError, match="b names more than one label"):
        read.renamed({"a": "b"})


def test_point_contours_enclose_nothing(tmp_path):
    read = drawn(tmp_path, ("marker", [[(3, 3, 1)]]), kind="POINT").read(GRID)
    assert read.notes == ("marker: a contour of type POINT with 1 points encloses nothing, left out",)
    assert not read.labels_zyx.any()


def test_contours_on_another_ct_are_refused(tmp_path):
    for contour, says in (
        (box(1, 1, 5, 5, 1.5), r"a contour of a lies 0\.50 of the plane spacing from the nearest plane"),
        (box(1, 1, 5, 5, 4), "a contour of a lies on plane 4 of the CT, which has planes 0 to 3"),
        ([(1, 1, 1), (5, 1, 1), (5, 5, 3)], "lies 2.00 of the plane spacing"),
    ):
        with pytest.raises(ResultUnreadable, match=says):
            drawn(tmp_path, ("a", [contour])).read(GRID)
    with pytest.raises(ResultUnreadable, match="a names more than one label"):
        drawn(tmp_path, ("a", []), ("a", [])).read(GRID)
    with pytest.raises(ResultUnreadable, match="the CT is needed"):
        drawn(tmp_path, ("a", [])).read()


def test_contours_beyond_the_image_edge_are_clipped(tmp_path):
    read = drawn(tmp_path, ("a", [box(-5, -5, 2.5, 3.5, 0)])).read(Geometry(GRID.shape_zyx, GRID.affine_lps))
    assert np.argwhere(read.labels_zyx).max(axis=0).tolist() == [0, 3, 2]
    assert read.voxels_by_name == {"a": 12}
