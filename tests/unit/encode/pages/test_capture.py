"""Secondary captures and the document: what is drawn, the stated patient, and the stated position."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from dicom_node.encode.identity import RunIdentity
from dicom_node.encode.pages.banner import IN_HEADER, NOT_STATED, banner
from dicom_node.encode.pages.capture import capture_files, on_patient_axes
from dicom_node.encode.pages.overlay import Legend, Palette, enlargement, isotropic, marks, toward
from dicom_node.encode.pages.page import Page, pages_as_images, pages_as_pdf
from dicom_node.encode.pages.planes import telling_planes, upright
from dicom_node.encode.provenance import Provenance, statements
from dicom_node.encode.segments import present_segments
from dicom_node.encode.source.series import prepare
from dicom_node.types import Reconstruction
from inference.structures import STRUCTURES, structure
from inference.types import Geometry, Volume
from tests.support.analysis_results import (
    CONTEXT,
    GRIDS,
    MODEL,
    ORIENTATIONS,
    geometry,
    measured,
    reconstruction,
    segmentation,
    with_headers,
)

NAMES = {3: "kidney_left", 7: "kidney_right", 9: "liver", 201: "spleen"}


def page_of(
    source: Reconstruction, labels_zyx: np.ndarray | None = None, names: dict[int, str] | None = None
) -> tuple[Page, np.ndarray]:
    if names is not None and labels_zyx is None:
        labels_zyx = np.zeros(source.source.geometry.shape_zyx, np.uint8)
        labels_zyx[5, 2:22, 2:22].flat[: len(names)] = sorted(names)
    labels = segmentation(source.source.geometry, names or NAMES, labels_zyx)
    measurements = measured(source, labels)
    prepared = prepare(source)
    identity = RunIdentity.of(prepared.series_instance_uid, MODEL, CONTEXT)
    said = statements(CONTEXT, MODEL, len(prepared.planes), ())
    provenance = Provenance(identity, CONTEXT, prepared, said)
    segments = present_segments(labels, measurements, identity)
    patient = on_patient_axes(source, labels.labels_zyx)
    return Page(patient, segments, measurements.not_found, provenance), labels.labels_zyx


def captures(source: Reconstruction, labels_zyx: np.ndarray | None = None) -> list[Dataset]:
    page, labels = page_of(source, labels_zyx)
    files = capture_files(page, source, labels)
    return [dcmread(BytesIO(file)) for file in files]


def corner_mm(image: Dataset) -> np.ndarray:
    right, down = np.array(image.ImageOrientationPatient, float).reshape(2, 3)
    down_mm, right_mm = (float(value) for value in image.PixelSpacing)
    return np.array(image.ImagePositionPatient, float) - (right * right_mm + down * down_mm) / 2


def by_series(datasets: list[Dataset]) -> list[list[Dataset]]:
    series: dict[str, list[Dataset]] = {}
    for dataset in datasets:
        series.setdefault(dataset.SeriesInstanceUID, []).append(dataset)
    return list(series.values())


# ---- position


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "one voxel"])
def test_overlay_image_has_the_position_of_the_structure(name: str) -> None:
    """The coloured pixels of every image, located by the image's own attributes, are voxels with a label."""
    grid, multi_frame = GRIDS[name]
    source = reconstruction(grid, multi_frame=multi_frame)
    labels = np.zeros(grid.shape_zyx, dtype=np.uint8)
    labels[: grid.shape_zyx[0] // 2 + 1, 2:4, 3:9] = 3
    index_of = np.linalg.inv(grid.affine_lps)
    checked = 0
    _, *overlays = by_series(captures(source, labels))
    # coronal images are cut from the upright volume, which these synthetic tilted series do not have
    for images in overlays if grid.is_orthogonal else overlays[:1]:
        for dataset in images:
            row, column = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
            down_mm, right_mm = (float(value) for value in dataset.PixelSpacing)
            j, i = np.nonzero(np.ptp(dataset.pixel_array.astype(int), axis=2) > 30)
            places = np.array(dataset.ImagePositionPatient, float)[:, None] + (
                row[:, None] * right_mm * i + column[:, None] * down_mm * j
            )
            x, y, z = np.rint(index_of[:3, :3] @ places + index_of[:3, 3:]).astype(int)
            inside = (z >= -1) & (z <= grid.shape_zyx[0] // 2 + 1) & (y >= 1) & (y <= 4) & (x >= 2) & (x <= 9)
            assert inside.all()
            checked += len(i)
    assert checked


def test_source_images_go_from_head_to_feet_and_refer_to_the_ct() -> None:
    grid = geometry((60, 16, 16))
    source = reconstruction(grid)
    labels = np.zeros(grid.shape_zyx, dtype=np.uint8)
    labels[5:, 4:9, 4:9] = 3
    _, axial, coronal = by_series(captures(source, labels))
    assert len(axial) <= 40
    heights = [float(dataset.ImagePositionPatient[2]) for dataset in axial]
    assert heights == sorted(heights, reverse=True)
    assert [dataset.InstanceNumber for dataset in axial] == list(range(1, len(axial) + 1))
    for dataset in axial:
        (reference,) = dataset.SourceImageSequence
        (header,) = (h for h in source.headers if h.SOPInstanceUID == reference.ReferencedSOPInstanceUID)
        # the small image is enlarged: its corner stays in place
        assert corner_mm(header) == pytest.approx(corner_mm(dataset))
    backs = [float(dataset.ImagePositionPatient[1]) for dataset in coronal]
    assert backs == sorted(backs)
    assert list(coronal[0].PatientOrientation) == ["L", "F"]
    assert list(axial[0].PatientOrientation) == ["L", "P"]


def test_labels_of_a_tilted_gantry_are_drawn_upright_with_their_image() -> None:
    """Reconstruct's upright volume and the labels of the source frames match: here the HU are the labels."""
    shift = 0.9 / 0.7
    grid = geometry((6, 20, 16), shear_xy_mm=(0.0, 0.9))
    labels = np.zeros(grid.shape_zyx, dtype=np.uint8)
    for k in range(6):
        first = 10 - round(k * shift)
        labels[k, first : first + 4, 4:9] = 3
    affine = grid.affine_lps.copy()
    affine[:3, 2] -= shift * affine[:3, 1]
    wide = Geometry((6, 27, 16), affine)
    volume = Volume(np.zeros(wide.shape_zyx, np.int16), wide)
    flat = reconstruction(grid)
    tilted = Reconstruction(volume, flat.source, flat.frames, flat.headers, (0.0, shift))
    moved = on_patient_axes(tilted, labels).labels_zyx
    assert moved.shape == wide.shape_zyx
    assert (moved == 3).sum() == (labels == 3).sum()
    rows = [np.flatnonzero(moved[k].any(axis=1))[0] for k in range(6)]
    assert max(rows) - min(rows) <= 1  # in the source frames they go from 10 to 4


@pytest.mark.parametrize("orientation", list(ORIENTATIONS.values()), ids=list(ORIENTATIONS))
def test_upright_pixels_have_the_correct_position(orientation: tuple[float, ...]) -> None:
    grid = geometry((4, 5, 6), orientation)
    z, y, x = np.indices(grid.shape_zyx)
    places = np.einsum("ij,jzyx->izyx", grid.affine_lps, np.stack([x, y, z, np.ones_like(x)]))
    for axis in range(3):
        view = upright(Volume(places[axis].astype(np.float32), grid), np.zeros(grid.shape_zyx, np.uint8))
        k, j, i = (n - 1 for n in view.hu_zyx.shape)
        for corner in ((0, 0, 0), (k, 0, i), (k, j, 0)):
            assert view.hu_zyx[corner] == pytest.approx((view.affine_lps @ (*corner[::-1], 1))[axis], abs=1e-3)


def test_directions_are_named_by_patient_axes() -> None:
    assert toward(np.array([1.0, 0, 0])) == "L"
    assert toward(np.array([0, -0.2, -0.98])) == "F"
    assert toward(np.array([-0.6, 0.8, 0]), "LRPASI") == "PR"


# ---- what is drawn


def test_structures_are_drawn_in_their_colours_over_the_windowed_image() -> None:
    page, _ = page_of(reconstruction())
    palette = Palette(page.segments)
    hu = np.full((9, 9), 40, np.int16)
    labels = np.zeros((9, 9), np.uint8)
    labels[2:7, 2:7] = 3
    labels[8, 8] = 99  # not in this selection
    image = palette.paint(hu, labels).astype(int)
    colour = np.array(structure("kidney_left").rgb)
    assert np.abs(image[2, 2] - (0.9 * colour + 0.1 * 127.5)).max() <= 1
    assert np.abs(image[4, 4] - (0.4 * colour + 0.6 * 127.5)).max() <= 1
    assert set(image[0, 0]) == set(image[8, 8]) == {127}
    extremes = palette.paint(np.array([[-3000, 3000], [-160, 240]], np.int16), np.zeros((2, 2), np.uint8))
    assert extremes[..., 0].tolist() == [[0, 255], [0, 255]]


def test_anisotropic_images_get_square_pixels_and_keep_their_extent() -> None:
    hu = np.arange(12, dtype=np.float32).reshape(3, 4)
    stretched, labels, (row_mm, column_mm) = isotropic(hu, (hu > 7).astype(np.uint8), 5.0, 1.0)
    assert stretched.shape == labels.shape == (15, 4)
    assert row_mm == pytest.approx(1) == column_mm
    assert labels.sum() == 5 * 4
    assert stretched[7].tolist() == hu[1].tolist()


@pytest.mark.parametrize("shape", [(512, 512), (149, 512), (82, 1024), (726, 334), (64, 64)])
def test_every_direction_letter_is_legible(shape: tuple[int, int]) -> None:
    """As many white pixels at its edge as the letter's strokes need: an L without its stem has a third of them."""
    burnt = marks(shape, ("R", "L", "A", "P"), ("x" * 300,))
    white = (burnt[..., 3] > 200) & (burnt[..., :3].min(axis=2) > 180)
    rows, columns = shape
    high, wide = slice(rows // 2 - 11, rows // 2 + 11), slice(columns // 2 - 11, columns // 2 + 11)
    for place in (np.s_[high, :22], np.s_[high, columns - 22 :], np.s_[:22, wide], np.s_[rows - 22 :, wide]):
        assert white[place].sum() > 25


def test_legend_names_the_structures_in_its_image() -> None:
    page, _ = page_of(reconstruction())
    legend = Legend(page.segments, 200)
    labels = np.zeros((200, 300), np.uint8)
    labels[5:9, 5:9], labels[20:30, 20:30] = 3, 9
    both = legend.beside(np.full((200, 300, 3), 7, np.uint8), labels)
    assert both.shape == (200, 300 + legend.width, 3)
    assert (both[:, :300] == 7).all()
    colours = {tuple(colour) for colour in both[:, 300:].reshape(-1, 3).tolist()}
    assert {structure(name).rgb for name in ("kidney_left", "liver")} <= colours
    assert not {structure(name).rgb for name in ("kidney_right", "spleen")} & colours


def test_legend_keeps_the_largest_structures_if_space_is_short() -> None:
    names = dict(enumerate((each.name for each in STRUCTURES[:30]), start=1))
    segments = page_of(reconstruction(geometry((12, 24, 24))), names=names)[0].segments
    assert len(segments) == 30
    labels = np.zeros((130, 130), np.uint8)
    for segment in segments:
        labels[: 31 - segment.label, segment.label] = segment.label
    strip = Legend(segments, 130).beside(np.zeros((130, 130, 3), np.uint8), labels)[:, 130:]
    colours = {tuple(colour) for colour in strip.reshape(-1, 3).tolist()}
    first, others = ({segment.structure.rgb for segment in part} for part in (segments[:6], segments[6:]))
    assert first <= colours
    assert not (others - first) & colours


@pytest.mark.parametrize(("shape", "factor"), [((512, 512), 1), ((141, 137), 3), ((512, 41), 2), ((1, 1), 4)])
def test_small_images_are_enlarged(shape: tuple[int, int], factor: int) -> None:
    assert enlargement(shape) == factor


def test_shown_planes_are_those_with_the_most_structures() -> None:
    labels = np.zeros((10, 11, 12), np.uint8)
    labels[2] = 1
    labels[7, 3, 4:8] = [1, 2, 3, 4]
    assert telling_planes(labels, (1, 2, 3, 4))[:2] == (7, 3)
    assert telling_planes(labels, (1,))[0] == 2
    assert telling_planes(labels, (200,)) == (5, 5, 6)


def test_page_states_that_nothing_was_found() -> None:
    empty = np.zeros(reconstruction().source.geometry.shape_zyx, np.uint8)
    (only,) = captures(reconstruction(), empty)
    assert only.BurnedInAnnotation == "YES"
    assert only.pixel_array.std() > 5


def test_same_run_gives_the_same_bytes() -> None:
    page, labels = page_of(reconstruction())

    def made() -> list[bytes]:
        files = capture_files(page, reconstruction(), labels)
        return [bytes(file) for file in files]

    assert made() == made()


def test_concurrent_runs_draw_the_same_as_separate_runs() -> None:
    """Fonts and settings of matplotlib belong to the process; the node encodes in several threads."""
    pages = [page_of(reconstruction(GRIDS[name][0]))[0] for name in ("axial", "one plane")]
    alone = [(pages_as_images(page), pages_as_pdf(page)) for page in pages]
    with ThreadPoolExecutor(4) as threads:
        images, documents = threads.map(pages_as_images, pages), threads.map(pages_as_pdf, pages)
        together = list(zip(images, documents, strict=True))
    for (images_alone, document_alone), (shown, document) in zip(alone, together, strict=True):
        assert document == document_alone
        assert np.array_equal(shown, images_alone)


# ---- the patient

SOUND = [
    ("ISO_IR 100", "Müller^Jürgen".encode("latin-1"), "Müller, Jürgen"),
    ("ISO_IR 192", "Ђорђевић^Ана^^др".encode(), "Ђорђевић, Ана др"),
    ("ISO_IR 144", "Ђорђевић^Љиља".encode("iso8859-5"), "Ђорђевић, Љиља"),
    ("ISO_IR 192", "Wang^XiaoDong=王^小東".encode(), "Wang, XiaoDong"),
    ("\\ISO 2022 IR 87", b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B", "Yamada, Tarou"),
    ("ISO_IR 192", "=王^小東".encode(), IN_HEADER),
    ("ISO_IR 127", "قباني^لنزار".encode("iso8859-6"), IN_HEADER),
    ("ISO_IR 13", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", IN_HEADER),
    ("NONSENSE", b"Plain^Name", "Plain, Name"),
    ("ISO_IR 192", b"\xff\xfe^broken", IN_HEADER),
    ("", b"", NOT_STATED),
    ("", b"Cost$^$x_1$", "Cost$, $x_1$"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("character_set", "raw", "shown"), SOUND, ids=range(len(SOUND)))
def test_name_is_drawn_correctly_or_not_at_all(character_set: str, raw: bytes, shown: str, tmp_path) -> None:
    def change(header: Dataset) -> None:
        header.SpecificCharacterSet = character_set.split("\\") if character_set else None
        header["PatientName"] = raw_name(raw)
        header.ReferringPhysicianName = header.StudyDescription = header.InstitutionName = "x"
        header.ManufacturerModelName = "x"

    source = with_headers(reconstruction(), change)
    page, _ = page_of(source)
    identity = page.provenance.source.identity
    before = identity.get_item("PatientName").value
    assert banner(identity).patient_name == shown
    assert identity.get_item("PatientName").value == before
    assert pages_as_images(page)


def raw_name(value: bytes):
    return RawDataElement(Tag("PatientName"), "PN", len(value), value, 0, False, True)


def test_dates_are_readable_and_missing_values_are_stated() -> None:
    identity = Dataset()
    identity.PatientBirthDate, identity.PatientID = "19500203", "P-1"
    shown = banner(identity)
    assert (shown.birth_date, shown.patient_id, shown.sex) == ("1950-02-03", "P-1", NOT_STATED)
