"""Structure sets are read with pydicom and rasterised with matplotlib and scikit-image, from LPS coordinates alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import highdicom
import numpy as np
import pytest
from matplotlib.path import Path as Polygon
from pydicom import Dataset, Sequence, dcmread
from pydicom.filebase import DicomBytesIO
from scipy.ndimage import gaussian_filter
from skimage.draw import polygon2mask

from dicom_node.encode.identity import RunIdentity
from dicom_node.encode.provenance import Provenance, statements
from dicom_node.encode.reread import refuse_other_identity
from dicom_node.encode.rtstruct.check import refuse_other_contours
from dicom_node.encode.rtstruct.structure_set import contours_file
from dicom_node.encode.run import encode
from dicom_node.encode.segments import Segment, present_segments
from dicom_node.encode.source.series import PreparedSource, prepare
from dicom_node.errors import EncodingError
from dicom_node.standard.part10 import file_of
from dicom_node.types import Reconstruction, ResultKind, ResultRequest
from inference.phantom import phantom
from inference.structures import paper_labels
from tests.support.analysis_results import (
    CONTEXT,
    GRIDS,
    MODEL,
    ORIENTATIONS,
    geometry,
    measured,
    reconstruction,
    segmentation,
)

if TYPE_CHECKING:
    from inference.types import Geometry, Segmentation

NAMES = {3: "kidney_left", 7: "kidney_right", 9: "kidney_cyst_left", 200: "body_fat", 201: "liver"}


class Run(NamedTuple):
    labels: Segmentation
    segments: tuple[Segment, ...]
    source: PreparedSource
    provenance: Provenance

    def content(self) -> memoryview:
        return contours_file(self.labels.labels_zyx, self.segments, self.provenance)

    def dataset(self) -> Dataset:
        return dcmread(DicomBytesIO(bytes(self.content())))

    def refuse(self, dataset: Dataset) -> None:
        content = memoryview(file_of(dataset))
        refuse_other_contours(content, self.labels.labels_zyx, self.segments, self.source)


def run_of(reconstructed: Reconstruction, labels: Segmentation) -> Run:
    source = prepare(reconstructed)
    identity = RunIdentity.of(source.series_instance_uid, MODEL, CONTEXT)
    segments = present_segments(labels, measured(reconstructed, labels), identity)
    said = statements(CONTEXT, MODEL, len(source.planes), ())
    return Run(labels, segments, source, Provenance(identity, CONTEXT, source, said))


def blobs(shape_zyx: tuple[int, int, int]) -> np.ndarray:
    """Sponges with holes and islands, down to single pixels, asymmetric in every direction."""
    generator = np.random.default_rng(5)
    labels = np.zeros(shape_zyx, dtype=np.uint8)
    for label in (3, 7, 9):
        noise = gaussian_filter(generator.random(shape_zyx), (0, 1.2, 1.2), mode="nearest")
        labels[noise > 0.5 + 0.02 * label / 3] = label
    labels[:, :2, :3] = 3
    labels[-1, -1, -1] = 200
    return labels


@pytest.fixture(scope="module")
def run() -> Run:
    on = geometry((4, 40, 50))
    return run_of(reconstruction(on), segmentation(on, NAMES, blobs(on.shape_zyx)))


def rasterised(dataset: Dataset, number: int, grid_of_labels: Geometry) -> np.ndarray:
    """The voxels of an ROI: coordinates mapped by the grid's affine and filled by matplotlib, plane by plane."""
    to_index = np.linalg.inv(grid_of_labels.affine_lps)
    found = np.zeros(grid_of_labels.shape_zyx, dtype=int)
    (roi,) = (item for item in dataset.ROIContourSequence if item.ReferencedROINumber == number)
    for contour in roi.ContourSequence:
        points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
        assert len(points) == contour.NumberOfContourPoints
        x, y, z, _ = to_index @ np.column_stack((points, np.ones(len(points)))).T
        assert np.abs(z - np.rint(z[0])).max() < 1e-3
        outline = np.column_stack((x, y))
        first_column, first_row = np.floor(outline.min(axis=0)).astype(int) + 1
        last_column, last_row = np.floor(outline.max(axis=0)).astype(int)
        box = np.s_[round(z[0]), first_row : last_row + 1, first_column : last_column + 1]
        rows, columns = np.mgrid[first_row : last_row + 1, first_column : last_column + 1]
        enclosed = Polygon(np.vstack((outline, outline[:1])), closed=True).contains_points(
            np.column_stack((columns.ravel(), rows.ravel()))
        )
        found[box] += enclosed.reshape(rows.shape)
    return found


@pytest.mark.parametrize("name", GRIDS)
def test_every_voxel_is_inside_the_contours_on_any_grid(name: str) -> None:
    on, multi_frame = GRIDS[name]
    labels = blobs(on.shape_zyx) if min(on.shape_zyx[1:]) > 1 else np.full(on.shape_zyx, 3)
    made = run_of(reconstruction(on, multi_frame=multi_frame), segmentation(on, NAMES, labels))
    content = made.content()
    refuse_other_contours(content, labels, made.segments, made.source)
    dataset = made.dataset()
    assert len(dataset.ROIContourSequence) == len(made.segments) == len(set(labels.ravel()) - {0})
    for segment in made.segments:
        assert np.array_equal(rasterised(dataset, segment.number, on), labels == segment.label)


@pytest.mark.parametrize("name", GRIDS)
def test_every_contour_refers_to_its_own_frame(name: str) -> None:
    on, multi_frame = GRIDS[name]
    reconstructed = reconstruction(on, multi_frame=multi_frame)
    labels = blobs(on.shape_zyx) if min(on.shape_zyx[1:]) > 1 else np.full(on.shape_zyx, 3)
    dataset = run_of(reconstructed, segmentation(on, NAMES, labels)).dataset()
    normal = np.cross(on.direction[:, 0], on.direction[:, 1])
    place = {}
    for k, frame in enumerate(reconstructed.frames):
        place[frame.sop_instance_uid, frame.frame_number] = normal @ (on.affine_lps[:3, 3] + k * on.affine_lps[:3, 2])
    for roi in dataset.ROIContourSequence:
        for contour in roi.ContourSequence:
            (image,) = contour.ContourImageSequence
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            expected = place[image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")]
            assert np.abs(points @ normal - expected).max() < 1e-3


@pytest.fixture(scope="module")
def patient_labels() -> np.ndarray:
    return phantom(7, (3.0, 3.0, 10.0), "chest_abdomen").truth.labels_zyx


@pytest.mark.parametrize("orientation", ["axial", "oblique"])
def test_structures_of_a_patient_keep_their_shape_when_filled_by_scikit_image(
    patient_labels: np.ndarray, orientation: str
) -> None:
    """Like dcmrtstruct2nii: scikit-image fills each contour; contours in one plane are combined by XOR and by OR."""
    on = geometry(patient_labels.shape, ORIENTATIONS[orientation], spacing_xyz_mm=(3.0, 3.0, 10.0))
    made = run_of(reconstruction(on), segmentation(on, paper_labels(), patient_labels))
    dataset, to_index = made.dataset(), np.linalg.inv(on.affine_lps)
    large = [segment for segment in made.segments if segment.measurement.volume_ml > 1]
    assert len(large) > 40
    for segment in large:
        either, exclusive = np.zeros(on.shape_zyx, dtype=bool), np.zeros(on.shape_zyx, dtype=bool)
        for contour in dataset.ROIContourSequence[segment.number - 1].ContourSequence:
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            x, y, z, _ = to_index @ np.column_stack((points, np.ones(len(points)))).T
            filled = polygon2mask(on.shape_zyx[1:], np.column_stack((y, x)))
            either[round(z[0])] |= filled
            exclusive[round(z[0])] ^= filled
        truth = patient_labels == segment.label
        for found in (either, exclusive):
            dice = 2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))
            assert dice >= 0.98, (segment.structure.name, dice)


def test_contour_data_always_fits_explicit_vr() -> None:
    """The outline of a plane of noise exceeds the limit several times: it is split, but encloses the same pixels."""
    on = geometry((1, 160, 160))
    labels = np.where(gaussian_filter(np.random.default_rng(0).random(on.shape_zyx), (0, 0.6, 0.6)) > 0.45, 201, 0)
    made = run_of(reconstruction(on), segmentation(on, NAMES, labels))
    dataset = made.dataset()
    contours = dataset.ROIContourSequence[0].ContourSequence
    assert all(contour.get_item("ContourData").VR == "DS" for contour in contours)
    assert max(len(contour.get_item("ContourData").value) for contour in contours) <= 65534
    assert max(contour.NumberOfContourPoints for contour in contours) > 1000
    assert np.array_equal(rasterised(dataset, 1, on), labels == 201)


def test_each_destination_gets_the_contours_it_requested() -> None:
    on = geometry((4, 40, 50))
    reconstructed, labels = reconstruction(on), segmentation(on, NAMES, blobs(on.shape_zyx))
    requests = {
        "planning": ResultRequest(contours=("kidney_left", "kidney_right")),
        "research": ResultRequest(contours=("kidney_right", "kidney_left", "kidney_left")),
        "other": ResultRequest(contours=("organ", "liver")),
        "nothing of it": ResultRequest(contours=("liver",)),
        "pacs": ResultRequest(),
    }
    results = encode(reconstructed, labels, measured(reconstructed, labels), CONTEXT, requests)
    sets = {result.destinations: result for result in results if result.kind is ResultKind.CONTOURS}
    assert list(sets) == [("planning", "research"), ("other",)]
    named = [[roi.ROIName for roi in result.dataset.StructureSetROISequence] for result in sets.values()]
    assert named == [["kidney_left", "kidney_right"], ["kidney_left", "kidney_right", "kidney_cyst_left"]]
    assert len({result.sop_instance_uid for result in sets.values()}) == 2
    assert "kidney_left, kidney_right" in sets["planning", "research"].dataset.StructureSetDescription


def test_no_structure_set_is_made_when_nothing_was_found() -> None:
    on = geometry((2, 10, 10))
    reconstructed, labels = reconstruction(on), segmentation(on, NAMES, np.zeros(on.shape_zyx))
    requests = {"planning": ResultRequest(contours=("organ",))}
    results = encode(reconstructed, labels, measured(reconstructed, labels), CONTEXT, requests)
    assert [result.kind for result in results] == [ResultKind.REPORT]


def test_regions_are_named_coded_and_coloured(run: Run) -> None:
    dataset = run.dataset()
    rois, observations = dataset.StructureSetROISequence, dataset.RTROIObservationsSequence
    assert [roi.ROIName for roi in rois] == ["kidney_left", "kidney_right", "kidney_cyst_left", "body_fat"]
    for roi, observation, contours, segment in zip(
        rois, observations, dataset.ROIContourSequence, run.segments, strict=True
    ):
        structure = segment.structure
        assert roi.ROINumber == observation.ReferencedROINumber == contours.ReferencedROINumber == segment.number
        assert roi.ReferencedFrameOfReferenceUID == run.source.frame_of_reference_uid
        assert roi.ROIGenerationAlgorithm == "AUTOMATIC"
        assert roi.ROIDerivationAlgorithmIdentificationSequence[0].AlgorithmName == MODEL.name
        assert float(roi.ROIVolume) == pytest.approx(segment.measurement.volume_ml)
        assert tuple(contours.ROIDisplayColor) == structure.rgb
        (code,) = observation.RTROIIdentificationCodeSequence
        assert (code.CodeValue, code.CodingSchemeDesignator) == (structure.type.value, structure.type.scheme)
    left = observations[0].RTROIIdentificationCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert left.CodeMeaning == "Left"
    assert observations[2].AnatomicRegionSequence[0].CodeMeaning == "Kidney"
    assert [observation.RTROIInterpretedType for observation in observations] == ["ORGAN", "ORGAN", "", ""]


def test_every_source_image_and_the_start_of_the_analysis_are_stated(run: Run) -> None:
    dataset = run.dataset()
    (frame_of_reference,) = dataset.ReferencedFrameOfReferenceSequence
    (study,) = frame_of_reference.RTReferencedStudySequence
    (series,) = study.RTReferencedSeriesSequence
    assert study.ReferencedSOPInstanceUID == dataset.StudyInstanceUID == run.source.study_instance_uid
    assert series.SeriesInstanceUID == run.source.series_instance_uid
    assert [image.ReferencedSOPInstanceUID for image in series.ContourImageSequence] == [
        plane.sop_instance_uid for plane in run.source.planes
    ]
    started = run.provenance.started_at
    assert dataset.StructureSetDate + dataset.StructureSetTime == f"{started:%Y%m%d%H%M%S.%f}"
    assert dataset.ApprovalStatus == "UNAPPROVED"
    assert dataset.StructureSetLabel == "RESEARCH USE"
    refuse_other_identity(dataset, run.source)


def test_truncated_structure_is_marked_as_truncated(run: Run) -> None:
    described = [roi.ROIDescription for roi in run.dataset().StructureSetROISequence]
    truncated = [segment.measurement.truncated for segment in run.segments]
    assert ["Truncated" in text for text in described] == truncated
    assert any(truncated)


def test_same_run_gives_the_same_bytes_and_another_variant_other_uids(run: Run) -> None:
    assert run.content() == run.content()
    other = replace(run.provenance, identity=replace(run.provenance.identity, variant="liver"))
    assert run._replace(provenance=other).dataset().SOPInstanceUID != run.dataset().SOPInstanceUID


def test_every_attribute_belongs_to_the_structure_set_iod_and_no_required_one_is_missing(run: Run) -> None:
    """Checked with highdicom's tables of the standard."""
    tables = Path(highdicom.__file__).parent / "_standard"
    modules = json.loads((tables / "iod_module_map.json").read_text())["rt-structure-set"]
    attributes = json.loads((tables / "module_attribute_map.json").read_text())
    known = {
        (*attribute["path"], attribute["keyword"]): (attribute["type"], module["usage"])
        for module in modules
        for attribute in attributes[module["key"]]
    }
    seen = set(attribute_paths(run.dataset(), ()))
    assert seen <= set(known)
    missing = {
        path
        for path, (kind, usage) in known.items()
        if kind in ("1", "2") and path not in seen and (path[:-1] in seen or (len(path) == 1 and usage == "M"))
    }
    assert not missing


def attribute_paths(dataset: Dataset, above: tuple[str, ...]):
    for element in dataset:
        yield (*above, element.keyword)
        if element.VR == "SQ":
            for item in element.value:
                yield from attribute_paths(item, (*above, element.keyword))


# ---- the final check


def first_contour(dataset: Dataset) -> Dataset:
    return dataset.ROIContourSequence[0].ContourSequence[0]


def moved(dataset: Dataset, by_lps_mm: tuple[float, float, float]) -> None:
    for roi in dataset.ROIContourSequence:
        for contour in roi.ContourSequence:
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3) + by_lps_mm
            contour.ContourData = [f"{value:.4f}" for value in points.ravel()]


def test_final_check_accepts_what_was_encoded(run: Run) -> None:
    run.refuse(run.dataset())


def test_final_check_detects_a_missing_contour(run: Run) -> None:
    dataset = run.dataset()
    del dataset.ROIContourSequence[0].ContourSequence[0]
    with pytest.raises(EncodingError, match=r"at least [1-9]\d* of 8000 voxels"):
        run.refuse(dataset)


def test_final_check_detects_contours_shifted_by_one_pixel(run: Run) -> None:
    dataset = run.dataset()
    inner = [roi for roi in dataset.ROIContourSequence if roi.ReferencedROINumber == 3]
    dataset.ROIContourSequence = Sequence([*dataset.ROIContourSequence[:2], *inner, dataset.ROIContourSequence[3]])
    points = np.array(first := inner[0].ContourSequence[0].ContourData, dtype=float).reshape(-1, 3)
    points[:, 0] += run.source.column_spacing_mm * (1 if points[:, 0].max() < -30 else -1)
    assert len(first) == points.size
    inner[0].ContourSequence[0].ContourData = [f"{value:.4f}" for value in points.ravel()]
    with pytest.raises(EncodingError, match="lie on the wrong side of the contours"):
        run.refuse(dataset)


@pytest.mark.parametrize("by_lps_mm", [(0.1, 0.0, 0.0), (0.0, 0.0, 0.05), (0.0, -0.01, 0.0)])
def test_final_check_detects_contours_off_their_pixels_or_frame(
    run: Run, by_lps_mm: tuple[float, float, float]
) -> None:
    dataset = run.dataset()
    moved(dataset, by_lps_mm)
    with pytest.raises(EncodingError, match=r"a contour lies 0\.\d+ mm from its source frame"):
        run.refuse(dataset)


def test_final_check_detects_a_contour_outside_its_frame(run: Run) -> None:
    dataset = run.dataset()
    moved(dataset, (100 * run.source.column_spacing_mm, 0, 0))
    with pytest.raises(EncodingError, match="leaves its source frame"):
        run.refuse(dataset)


def test_final_check_detects_a_reference_to_another_frame(run: Run) -> None:
    dataset = run.dataset()
    last = dataset.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    first_contour(dataset).ContourImageSequence[0].ReferencedSOPInstanceUID = last.ContourImageSequence[
        -1
    ].ReferencedSOPInstanceUID
    with pytest.raises(EncodingError, match="mm from its source frame"):
        run.refuse(dataset)
    first_contour(dataset).ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"
    with pytest.raises(EncodingError, match="not of the source series"):
        run.refuse(dataset)


def test_final_check_detects_a_wrong_number_of_points(run: Run) -> None:
    dataset = run.dataset()
    first_contour(dataset).NumberOfContourPoints += 1
    with pytest.raises(EncodingError, match="coordinates"):
        run.refuse(dataset)


def test_final_check_detects_a_missing_roi(run: Run) -> None:
    dataset = run.dataset()
    del dataset.ROIContourSequence[1]
    with pytest.raises(EncodingError, match=r"ROIs \[1, 3, 4\] for 4 structures"):
        run.refuse(dataset)
