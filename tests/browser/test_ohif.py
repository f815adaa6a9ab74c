"""What OHIF shows in a real browser for results of the node that are stored in a real Orthanc."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydicom import dcmread
from scipy.ndimage import binary_erosion

from dicom_node.deliver.abilities import Abilities, shows_binary
from dicom_node.deliver.scu import send
from dicom_node.types import ResultInstance, ResultKind, ResultRequest, SegmentationForm
from inference.phantom import phantom
from inference.structures import structure
from tests.browser.studies import encoded, prone, segmented, small_phantom, tilted, written
from tests.browser.viewer import Viewer

if TYPE_CHECKING:
    from tests.browser.studies import Study

FORMS = {"binary": ResultKind.SEGMENTATION, "label map": ResultKind.LABELMAP}
DEMO_MODEL = Path(__file__).resolve().parents[2] / "config" / "models" / "phantom_demo_104"
BOTH = {"viewer": ResultRequest(SegmentationForm.BOTH)}
COLOUR_TOLERANCE = 3
"""Out of 255: colours are transferred as 16-bit CIELab and blended in software."""


@pytest.fixture
def viewer(browser, origin):
    opened = Viewer(browser, origin)
    yield opened
    opened.close()


def stored(archive, study: Study) -> Study:
    for path in sorted(study.folder.glob("*.dcm")):
        archive.put(path.read_bytes())
    for result in study.results:
        archive.put(result.content)
    return study


@pytest.fixture(scope="module")
def series_of(archive, tmp_path_factory):
    """A study of this kind, made and stored once."""
    made: dict[str, Study] = {}

    def make(name: str) -> Study:
        if name not in made:
            rows, columns, bend = SORTS[name]
            case = small_phantom(11 + list(SORTS).index(name), rows, columns)
            study = encoded(written(case, tmp_path_factory.mktemp("ct"), bend), case, BOTH)
            made[name] = stored(archive, study)
        return made[name]

    return make


SORTS = {
    "axial": (64, 80, None),
    "tilted": (64, 80, tilted),
    "prone": (64, 80, prone),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sort", ["axial", "tilted", "prone"])
def test_every_voxel_name_and_colour_is_shown(sort, form, series_of, viewer, screenshot):
    study = series_of(sort)
    (segmentation,) = study.of(FORMS[form])
    viewer.open(study.study_uid, study.series_uid, segmentation.series_instance_uid)
    viewer.load(segmentation.series_instance_uid)
    assert_shows(viewer, study, segmentation.series_instance_uid)
    viewer.keep_screenshot(screenshot)
    assert viewer.complaints == []


@pytest.fixture(scope="module")
def demo_run(archive, tmp_path_factory):
    """A synthetic patient in which the demo model found all structures, stored with SEG and label map."""
    out = tmp_path_factory.mktemp("run")
    case = phantom(3, (500 / 128 + 1e-6, 315 / 80 + 1e-6, 8.0))
    study = stored(archive, segmented(written(case, out / "ct"), DEMO_MODEL, out))
    files = {"binary": out / "segmentation.dcm", "label map": out / "labelmap.dcm"}
    for file in files.values():
        archive.put(file.read_bytes())
    return study, {form: str(dcmread(file).SeriesInstanceUID) for form, file in files.items()}


@pytest.mark.parametrize("form", FORMS)
def test_all_structures_found_by_the_demo_model_are_shown(form, demo_run, viewer, screenshot):
    study, series_uids = demo_run
    seg_uid = series_uids[form]
    viewer.open(study.study_uid, study.series_uid, seg_uid)
    viewer.load(seg_uid)
    assert len([number for number in viewer.names(seg_uid) if number > 0]) == 104
    assert_shows(viewer, study, seg_uid)
    viewer.keep_screenshot(screenshot)
    assert viewer.complaints == []


def test_auto_form_is_shown_when_columns_is_not_a_multiple_of_eight(archive, viewer, screenshot, tmp_path):
    case = small_phantom(21, 63, 81)
    asked = ResultRequest(SegmentationForm.AUTO)
    accepts = Abilities("NODE").accepts_labelmap(archive.destination)
    request = asked.answered(accepts_labelmap=accepts)
    study = encoded(written(case, tmp_path / "ct"), case, {"viewer": request})
    (segmentation,) = study.of(ResultKind.LABELMAP)
    for path in study.folder.glob("*.dcm"):
        archive.put(path.read_bytes())
    file = tmp_path / "segmentation.dcm"
    file.write_bytes(segmentation.content)
    sent = ResultInstance(
        kind=segmentation.kind,
        sop_class_uid=segmentation.sop_class_uid,
        sop_instance_uid=segmentation.sop_instance_uid,
        series_instance_uid=segmentation.series_instance_uid,
        transfer_syntax_uid=segmentation.transfer_syntax_uid,
        path=file,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        size_bytes=file.stat().st_size,
    )
    (outcome,) = send(archive.destination, "NODE", [sent], lambda _: None)
    assert outcome.delivered, outcome.reason
    viewer.open(study.study_uid, study.series_uid, segmentation.series_instance_uid)
    viewer.load(segmentation.series_instance_uid)
    assert_shows(viewer, study, segmentation.series_instance_uid)
    viewer.keep_screenshot(screenshot)
    assert viewer.complaints == []


@pytest.mark.parametrize(("rows", "columns", "status"), [(61, 64, 200), (64, 60, 400), (63, 81, 400)])
def test_orthanc_serves_a_binary_segmentation_only_if_frames_end_on_a_byte(rows, columns, status, archive, tmp_path):
    """The reason why docs/users/viewers.md advises a label map: if this test fails, the advice is out of date."""
    case = small_phantom(22 + rows, rows, columns)
    study = stored(archive, encoded(written(case, tmp_path), case, {"viewer": ResultRequest(report=False)}))
    (result,) = study.results
    place = f"/studies/{study.study_uid}/series/{result.series_instance_uid}/instances/{result.sop_instance_uid}"
    accept = 'multipart/related; type="application/octet-stream"'
    assert archive.get(f"{place}/frames/2", accept) == status
    in_orthanc = archive.destination.model_copy(update={"viewer": "ohif_on_orthanc"})
    assert shows_binary(in_orthanc, columns) is (status == 200)


def test_report_page_and_overlay_are_shown(archive, viewer, screenshot, tmp_path):
    case = small_phantom(31, 64, 80)
    request = ResultRequest(SegmentationForm.NONE, report=False, capture=True)
    study = stored(archive, encoded(written(case, tmp_path), case, {"viewer": request}))
    series = dict.fromkeys(result.series_instance_uid for result in study.results)
    viewer.open(study.study_uid, study.series_uid, *series, mode="viewer")
    for count, uid in enumerate(series):
        viewer.double_click(uid)
        viewer.wait_for(uid)
        captures = {r.sop_instance_uid: r for r in study.results if r.series_instance_uid == uid}
        assert_capture_drawn(viewer, captures[viewer.image_on_screen()].dataset.pixel_array)
        viewer.keep_screenshot(screenshot.with_stem(f"{screenshot.stem}-{count}"))
    assert viewer.complaints == []


def assert_capture_drawn(viewer: Viewer, pixels: np.ndarray) -> None:
    places = np.argwhere(np.ones(pixels.shape[:2]))[:: pixels[..., 0].size // 4000, ::-1]
    truth = pixels[places[:, 1], places[:, 0]].astype(float)
    # the image is drawn scaled down: each screen pixel mixes several image pixels
    settled(lambda: 1 - likeness(viewer.pixels_at(places), truth), "the capture", tolerance=0.2)


def likeness(shown: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Correlation over all pixels and colour channels."""
    return np.array([np.corrcoef(shown.ravel(), truth.ravel())[0, 1]])


def assert_shows(viewer: Viewer, study: Study, seg_uid: str) -> None:
    """Check that label map, names, colours and drawn pixels are those of ``study``."""
    number_of = segment_numbers(study)
    shown = viewer.labels(seg_uid)
    assert set(shown) == set(study.truth)
    for uid, labels in study.truth.items():
        np.testing.assert_array_equal(shown[uid], number_of[labels], err_msg=f"image {uid}")
    names = {int(number_of[label]): study.names[label] for label in np.flatnonzero(number_of)}
    described = {number: name for number, name in viewer.names(seg_uid).items() if number > 0}
    assert described == names
    colours = {number: structure(name).rgb for number, name in names.items()}
    drawn = viewer.colours(seg_uid)
    for number, colour in colours.items():
        assert np.abs(np.subtract(drawn[number], colour)).max() <= 1, f"{names[number]}: {drawn[number]}"
    for uid in richest_images(study):
        assert_drawn(viewer, study, seg_uid, uid, number_of, colours)


def segment_numbers(study: Study) -> np.ndarray:
    """The segment number of each label that occurs, counted from 1."""
    present = np.unique(np.concatenate([np.unique(labels) for labels in study.truth.values()]))
    number_of = np.zeros(256, np.uint8)
    number_of[present[present > 0]] = np.arange(1, np.count_nonzero(present) + 1)
    return number_of


def richest_images(study: Study, count: int = 2) -> list[str]:
    """The images with the most structures."""
    return sorted(study.truth, key=lambda uid: -len(np.unique(study.truth[uid])))[:count]


def assert_drawn(viewer, study, seg_uid, image_uid, number_of, colours) -> None:
    """Each voxel of a structure shows its colour over the image's grey, or its outline; all others show grey only."""
    labels = study.truth[image_uid]
    clear = binary_erosion(labels == 0, np.ones((3, 3)))  # outlines extend beyond the edge of their structure
    places = np.concatenate([places_of(labels == label) for label in np.unique(labels[labels > 0])])
    colour = np.array([colours[int(number_of[labels[y, x]])] for x, y in places])
    beside = places_of(clear)

    def off() -> np.ndarray:
        # read everything again each time: the first screenshots may show the state before scrolling
        viewer.scroll_to(image_uid)
        viewer.show(seg_uid, visible=False)
        grey, grey_beside = viewer.pixels_at(places), viewer.pixels_at(beside)
        viewer.show(seg_uid, visible=True)
        filled = grey + (colour - grey) * viewer.fill_alpha()
        drawn = differences(viewer.pixels_at(places), filled, colour)
        untouched = differences(viewer.pixels_at(beside), grey_beside)
        return np.concatenate([np.ptp(grey, axis=1), drawn, untouched])

    settled(off, "the overlay")


def places_of(mask: np.ndarray, most: int = 40) -> np.ndarray:
    """Some pixels (column, row) of ``mask``, spread over all of it."""
    found = np.argwhere(mask)[:, ::-1]
    return found[:: -(-len(found) // most)]


def differences(shown: np.ndarray, *expected: np.ndarray) -> np.ndarray:
    """The distance of each pixel from the nearest colour allowed for it."""
    return np.min([np.abs(shown - each).max(axis=1) for each in expected], axis=0)


def settled(off, what: str, tolerance: float = COLOUR_TOLERANCE, limit_s: float = 120) -> None:
    """Wait until the screen differs by no more than this."""
    end = time.monotonic() + limit_s
    while not (off_by := off().max()) <= tolerance:
        assert time.monotonic() < end, f"{what}: the screen is {off_by:.2f} off"
        time.sleep(0.1)
