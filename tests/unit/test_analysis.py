"""The order of the steps of an analysis, and what each step does."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.analysis import Ct, analyse, measured, on_source_grid, reconstructed
from dicom_node.errors import NotEligible, PixelDataInvalid, SegmentationImpossible
from dicom_node.reconstruct import reconstruct
from dicom_node.types import ResultContext, ResultKind, ResultRequest
from inference.types import (
    Geometry,
    InvalidValueError,
    MinimumExtent,
    ModelIdentity,
    RunNote,
    RunReport,
    Segmentation,
    Volume,
)
from tests.support.chest import chest_hu
from tests.support.ct_series import Stack, noise, write

MODEL = ModelIdentity("two", "1", "0" * 64, "Thresholding")
NAMES = {1: "liver", 2: "spleen", 3: "aorta"}
RUN = RunReport("numpy", "CPU", "float64", (RunNote("the GPU was busy"),), {"infer": 0.1})
NO_MINIMUM = MinimumExtent()
TILTED = Stack(noise((8, 16, 16)), step_mm=(0.0, 0.6, 2.5))


def labels_of(volume, run=RUN):
    """Three labels by HU, anywhere in the volume."""
    labels_zyx = np.digitize(volume.voxels_zyx, [0, 1000, 2000]).astype(np.uint8)
    return Segmentation(labels_zyx, volume.geometry, NAMES, MODEL, run)


class Case:
    """A case that records the calls to it."""

    model = "two"

    def __init__(
        self, images, *, requests=None, minimum=NO_MINIMUM, structures=(), infer=labels_of, unchecked_hu=False
    ):
        self.minimum = minimum
        self.unchecked_hu = unchecked_hu
        self.structures = structures
        self.events = []
        self.findings = None
        self.results = []
        self._images = images
        self._requests = requests
        self._infer = infer

    @contextmanager
    def stage(self, name):
        self.events.append(name)
        yield

    def read(self):
        return self._images

    def reconstruct(self, series):
        return reconstruct(series)

    def infer(self, volume):
        self.events.append("infer")
        return self._infer(volume)

    def requests(self):
        self.events.append("ask")
        return self._requests

    @contextmanager
    def encoding(self):
        self.events.append("enter")
        yield
        self.events.append("leave")

    def context(self):
        self.events.append("context")
        return ResultContext(datetime(2026, 1, 2, tzinfo=UTC), 1, "ab" * 32, "node", "2.25.1")

    def keep(self, findings, results):
        self.events.append("keep")
        self.findings = findings
        self.results = list(results)


@pytest.fixture
def series(tmp_path):
    return write(tmp_path, Stack(noise((5, 8, 8))))


@pytest.fixture
def tilted(tmp_path):
    return write(tmp_path, TILTED)


def test_order_of_the_steps(series):
    case = Case(series, requests={"pacs": ResultRequest()})
    analyse(case)
    assert case.events == ["read", "reconstruct", "infer", "ask", "enter", "measure", "keep", "context", "leave"]
    assert [result.kind for result in case.results] == [ResultKind.SEGMENTATION, ResultKind.REPORT]
    assert {result.destinations for result in case.results} == {("pacs",)}


def test_each_result_is_encoded_only_on_demand(series):
    class OneOnly(Case):
        def keep(self, findings, results):
            self.results = [next(results)]

    case = OneOnly(series, requests={})
    analyse(case)
    assert [result.kind for result in case.results] == [ResultKind.SEGMENTATION]


def test_no_dicom_is_encoded_unless_requested(series):
    case = Case(series, requests=None)
    analyse(case)
    assert (case.results, case.findings.measurements.structures != ()) == ([], True)
    assert "context" not in case.events


def test_volume_without_images_is_measured_and_not_encoded(series):
    volume = reconstructed(series).volume
    case = Case(volume, requests={})
    analyse(case)
    assert case.results == []
    assert case.findings.ct.source is volume
    assert case.findings.measurements.structures


def test_shape_is_measured_if_a_destination_asks_for_it(series):
    with_and_without = []
    for request in (ResultRequest(shape=True), ResultRequest()):
        case = Case(series, requests={"a": ResultRequest(), "b": request})
        analyse(case)
        with_and_without.append({one.shape is not None for one in case.findings.measurements.structures})
    assert with_and_without == [{True}, {False}]


def test_volume_too_small_for_the_model_is_not_inferred(series):
    case = Case(series, minimum=MinimumExtent(slices=6))
    with pytest.raises(NotEligible, match=r"^5 slices; the model needs at least 6$"):
        analyse(case)
    assert case.events == ["read", "reconstruct"]


def elsewhere(volume):
    moved = volume.geometry.affine_lps.copy()
    moved[2, 3] += 1
    return replace(labels_of(volume), geometry=Geometry(volume.geometry.shape_zyx, moved))


def of_another_shape(volume):
    geometry = Geometry((2, 2, 2), volume.geometry.affine_lps)
    return Segmentation(np.ones((2, 2, 2), np.uint8), geometry, NAMES, MODEL)


def without_a_name(volume):
    return replace(labels_of(volume), names_by_label={1: "liver", 3: "aorta"})


def with_an_impossible_label(volume):
    return Segmentation(np.full(volume.geometry.shape_zyx, 200, np.uint8), volume.geometry, NAMES, MODEL)


@pytest.mark.parametrize("images", ["series", "tilted"])
@pytest.mark.parametrize("infer", [elsewhere, of_another_shape, without_a_name, with_an_impossible_label])
def test_inconsistent_labels_are_an_error_of_the_model(images, infer, request):
    case = Case(request.getfixturevalue(images), requests={}, infer=infer)
    with pytest.raises(SegmentationImpossible, match=r"^model 'two' returned an invalid label map: ") as failure:
        analyse(case)
    assert isinstance(failure.value.__cause__, InvalidValueError)
    assert "keep" not in case.events


def test_labels_of_a_tilted_gantry_are_on_the_source_planes(tilted):
    ct = reconstructed(tilted)
    assert ct.volume is not ct.source
    found = on_source_grid(ct, labels_of(ct.volume))
    assert found.geometry.same_grid(ct.source.geometry)
    # inside the volume, sheared there and back: voxels keep the label of their own HU within half a pixel
    agree = found.labels_zyx[:, 5:-5] == labels_of(ct.source).labels_zyx[:, 5:-5]
    assert found.labels_zyx.shape == ct.source.voxels_zyx.shape
    assert agree.mean() > 0.5
    assert (found.model, found.run) == (MODEL, RUN)


def test_labels_that_need_no_change_are_not_copied(series):
    ct = reconstructed(series)
    labels = labels_of(ct.volume)
    assert on_source_grid(ct, labels) is labels


@given(st.sets(st.sampled_from(sorted(NAMES.values())), min_size=1), st.integers(0, 2**32 - 1))
def test_only_the_named_structures_are_kept(structures, seed):
    volume = Volume(
        np.random.default_rng(seed).integers(-1000, 3000, (3, 4, 5)).astype(np.int16), Geometry((3, 4, 5), np.eye(4))
    )
    every = labels_of(volume)
    kept = on_source_grid(Ct(volume, volume), every, tuple(structures))
    wanted = [label for label, name in NAMES.items() if name in structures]
    assert np.array_equal(kept.labels_zyx, np.where(np.isin(every.labels_zyx, wanted), every.labels_zyx, 0))
    assert kept.names_by_label == {label: NAMES[label] for label in wanted}
    assert kept.run == every.run


def test_notes_are_those_of_the_images_followed_by_those_of_the_run(tilted):
    ct = reconstructed(tilted)
    of_images, of_run = measured(ct, on_source_grid(ct, labels_of(ct.volume)), with_shape=False).notes
    assert "gantry tilt" in of_images
    assert of_run == "the GPU was busy"
    nobody = measured(ct, on_source_grid(ct, labels_of(ct.volume, run=None)), with_shape=False)
    assert nobody.notes == (of_images,)


def test_volume_not_in_hounsfield_units_is_refused_unless_requested():
    voxels_zyx = np.full((10, 40, 40), -1000, np.int16)
    voxels_zyx[:, 10:30, 10:30] = 40
    sound = Volume(voxels_zyx, Geometry(voxels_zyx.shape, np.eye(4)))
    without_offset = Volume(voxels_zyx + np.int16(1024), sound.geometry)
    accepted = Case(sound)
    analyse(accepted)
    assert accepted.findings.notes == tuple(note.text for note in RUN.notes)
    with pytest.raises(PixelDataInvalid, match="where tissue is when the intercept is lost"):
        analyse(Case(without_offset))
    wanted = Case(without_offset, unchecked_hu=True)
    analyse(wanted)
    assert "taken as Hounsfield units because an option says so" in wanted.findings.notes[0]


def from_elsewhere(voxels_zyx):
    whole = np.issubdtype(voxels_zyx.dtype, np.integer)
    return Volume(voxels_zyx.astype(np.int16 if whole else np.float32), Geometry(voxels_zyx.shape, np.eye(4)))


HU = chest_hu().astype(float)
SHARES = (HU - HU.min()) / (HU.max() - HU.min())
METAL = np.where(np.arange(HU.size).reshape(HU.shape) % 20_000, HU, 30_000.0)
NORMALISED = {
    "0 to 1": (SHARES, "lie from 0 to 1, as in a mask or an image that was normalised"),
    "-1 to 1": (2 * SHARES - 1, "lie from -1 to 1, as in"),
    "clipped and 0 to 1": (np.clip((HU + 160) / 400, 0, 1), "lie from 0 to 1, as in"),
    "a mask": ((HU > -400).astype(np.uint8), "lie from 0 to 1, as in a mask"),
    "for nnU-Net": ((np.clip(HU, -950, 400) - 50) / 200, "from -5 to 1.75, as in"),
    "standardised": ((HU - HU.mean()) / HU.std(), "as in a mask or an image that was normalised"),
    "standardised, with metal": (
        (METAL - METAL.mean()) / METAL.std(),
        "their mean is 0 and their standard deviation 1",
    ),
    "grey levels": (np.rint(255 * SHARES).astype(np.uint8), "from 0 to 255, the grey levels of a picture"),
    "grey levels of a window": (np.rint(255 * np.clip((HU + 160) / 400, 0, 1)).astype(int), "the grey levels of a"),
    "grey levels, not rounded": (255 * SHARES, "the grey levels of a picture"),
}


@pytest.mark.parametrize(("voxels_zyx", "said"), NORMALISED.values(), ids=NORMALISED.keys())
def test_an_image_that_was_normalised_is_refused_unless_it_is_wanted(voxels_zyx, said):
    volume = from_elsewhere(voxels_zyx)
    with pytest.raises(PixelDataInvalid, match="the values are not Hounsfield units: all values lie from") as refusal:
        reconstructed(volume)
    assert said in str(refusal.value)
    (note,) = reconstructed(volume, unchecked_hu=True).notes
    assert note.startswith("taken as Hounsfield units because an option says so, though all values lie from")


BELOW_0 = "no voxel is below 0 HU: no air, lung or fat is in the volume, or the values are not Hounsfield units"
SOUND = {
    "a chest": (HU, ()),
    "one of whole numbers": (HU.astype(int), ()),
    "a pure block": (np.full((4, 30, 30), 40), (BELOW_0,)),
    "a block in a block": (np.pad(np.full((4, 30, 30), 45), 5, constant_values=40), (BELOW_0,)),
    "noise of a phantom": (np.random.default_rng(0).normal(0, 3, (8, 40, 40)), ()),
    "a crop within the body": (chest_hu()[:, 16:44, 29:35], ()),
    "the body alone, the rest 0": (np.where(HU > -400, HU, 0), ()),
    "the liver alone, the rest 0": (np.where(np.abs(HU - 40) < 24, HU, 0), (BELOW_0,)),
    "clipped": (
        np.clip(HU, -160, 240),
        ("64% of the voxels have the lowest value, -160 HU: the values may have been clipped there",),
    ),
    "clipped below air": (np.clip(HU, -1000, 1000), ()),
    "nothing but air": (np.full((4, 30, 30), -1000), ()),
}


@pytest.mark.parametrize(("voxels_zyx", "notes"), SOUND.values(), ids=SOUND.keys())
def test_values_that_may_be_hounsfield_units_pass_with_a_note_on_what_is_missing(voxels_zyx, notes):
    assert reconstructed(from_elsewhere(voxels_zyx)).notes == notes


def test_a_series_states_its_scale_and_is_not_asked_whether_it_was_normalised(tmp_path):
    pixels = np.full((5, 16, 16), 1064, np.uint16)
    pixels[:, 4:12] = 1068
    assert reconstructed(write(tmp_path, Stack(pixels))).notes == ()
