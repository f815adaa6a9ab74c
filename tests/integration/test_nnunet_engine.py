"""The engine against the plain pipeline: nibabel's axes, scipy's zoom, the whole volume at once, nearest labels."""

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from scipy import ndimage

from inference.errors import SegmentationRefusedError
from inference.nnunet.engine import Limits, NnunetSegmenter
from inference.nnunet.package import read_package
from inference.types import Geometry, Segmenter, Volume
from tests.nnunet_models import plans, random_network, write_model

PATCH = (32, 24, 40)
SPACING = (4.0, 4.0, 4.0)
LPS_AXES = {
    "supine": np.eye(3),
    "prone, feet first": np.diag([1.0, -1.0, -1.0]),
    "sagittal": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "oblique": np.linalg.qr(np.array([[1.0, 0.2, 0.1], [-0.2, 1, 0.15], [0.1, -0.15, 1]]))[0],
}


def ct(axes, shape_zyx=(40, 70, 64), spacing=(2.0, 2.5, 5.0), seed=0):
    """Structured noise with large and small features in the HU range of a CT."""
    rng = np.random.default_rng(seed)
    hu = ndimage.gaussian_filter(rng.normal(size=shape_zyx), 3)
    hu = np.rint(hu / np.abs(hu).max() * 1000).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = axes * np.sign(np.linalg.det(axes)) * spacing
    return Volume(hu, Geometry(shape_zyx, affine))


def reference(volume, networks, order=(0, 1, 2)):
    """Labels by the plain pipeline, on the source grid."""
    affine = np.diag([-1, -1, 1, 1]) @ volume.geometry.affine_lps
    image = nibabel.Nifti1Image(volume.voxels_zyx.transpose(2, 1, 0), affine)
    to_canonical = nibabel.io_orientation(affine)
    canonical = nibabel.as_closest_canonical(image)
    zoom = np.array(canonical.header.get_zooms(), float) / np.array(SPACING)[::-1]
    resampled = np.rint(ndimage.zoom(np.asarray(canonical.dataobj, float), zoom, order=1)).transpose(2, 1, 0)
    hu = resampled.transpose(order)
    filled = np.argwhere(hu != 0)
    box = tuple(slice(low, high + 1) for low, high in zip(filled.min(0), filled.max(0), strict=True))
    normalised = torch.from_numpy(((np.clip(hu[box], -900, 1100) - 20) / 300).astype(np.float32))
    labels = np.zeros(hu.shape, np.uint8)
    labels[box] = windows(normalised, networks).argmax(0).numpy()
    on_canonical = labels.transpose(np.argsort(order)).transpose(2, 1, 0)
    back = [n / m for n, m in zip(canonical.shape, on_canonical.shape, strict=True)]
    nearest = ndimage.zoom(on_canonical, back, order=0)
    undo = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), to_canonical)
    return nibabel.apply_orientation(nearest, undo).transpose(2, 1, 0)


def windows(image, networks):
    before = [max(w - n, 0) // 2 for n, w in zip(image.shape, PATCH, strict=True)]
    padded = torch.zeros([max(n, w) for n, w in zip(image.shape, PATCH, strict=True)])
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape, strict=True))
    padded[inside] = image
    weights = compute_gaussian(PATCH, 1 / 8, 10, torch.float32, torch.device("cpu"))
    sums = total = 0
    starts = compute_steps_for_sliding_window(tuple(padded.shape), PATCH, 0.5)
    with torch.no_grad():
        for z in starts[0]:
            for y in starts[1]:
                for x in starts[2]:
                    at = (slice(z, z + PATCH[0]), slice(y, y + PATCH[1]), slice(x, x + PATCH[2]))
                    logits = sum(network(padded[at][None, None])[0] for network in networks) / len(networks)
                    whole = torch.zeros((logits.shape[0], *padded.shape))
                    whole[(slice(None), *at)] = logits * weights
                    weight = torch.zeros(padded.shape)
                    weight[at] = weights
                    sums, total = sums + whole, total + weight
    return (sums / total)[(slice(None), *inside)]


@pytest.mark.parametrize("axes", LPS_AXES.values(), ids=LPS_AXES.keys())
def test_nearest_answer_is_the_plain_pipeline_s(tmp_path, axes):
    described = plans(patch=PATCH, spacing=SPACING)
    package = read_package([write_model(tmp_path / "m", described=described)], "test")
    volume = ct(axes)
    engine = NnunetSegmenter(package, device="cpu", threads=1, precision="float32", interpolation="nearest")
    assert isinstance(engine, Segmenter)
    steps = []
    result = engine.segment(volume, lambda fraction, stage: steps.append((fraction, stage)))
    expected = reference(volume, [random_network(described, 4)])
    assert np.sort(np.bincount(expected.ravel()) / expected.size)[-2] > 0.1, "a network that says little proves little"
    # where two logits are equal to the last bit, or a voxel lies in the middle of two, either label is right
    assert (result.labels_zyx == expected).mean() > 0.999
    assert result.geometry is volume.geometry
    assert steps == sorted(steps, key=lambda step: step[0])
    assert steps[-1][0] == 1.0


def test_axes_of_the_plans_and_folds_are_honoured(tmp_path):
    order = (1, 0, 2)
    described = plans(patch=PATCH, spacing=SPACING, axes=order)
    package = read_package([write_model(tmp_path / "m", described=described, folds=(0, 1))], "test")
    volume = ct(LPS_AXES["supine"])
    engine = NnunetSegmenter(package, device="cpu", threads=1, precision="float32", interpolation="nearest")
    expected = reference(volume, [random_network(described, 4, seed) for seed in (0, 1)], order)
    assert (engine.segment(volume, lambda *_: None).labels_zyx == expected).mean() > 0.999


def test_smooth_answer_and_reduced_precision_differ_at_borders_only(tmp_path):
    described = plans(patch=PATCH, spacing=SPACING)
    package = read_package([write_model(tmp_path / "m", described=described)], "test")
    volume = ct(LPS_AXES["supine"])

    def labels(precision, interpolation):
        engine = NnunetSegmenter(package, device="cpu", threads=1, precision=precision, interpolation=interpolation)
        return engine.segment(volume, lambda *_: None).labels_zyx

    nearest, smooth = labels("float32", "nearest"), labels("float32", "smooth")
    size = (3, 5, 5)  # in voxels of the source, at least two of the network's
    inner = ndimage.maximum_filter(nearest, size) == ndimage.minimum_filter(nearest, size)
    assert inner.mean() > 0.1
    np.testing.assert_array_equal(smooth[inner], nearest[inner])
    assert (labels("bfloat16", "smooth") == smooth).mean() > 0.95


def test_later_parts_overwrite_earlier_ones(tmp_path):
    first = write_model(tmp_path / "a", names=("liver", "spleen"), described=plans(patch=PATCH))
    second = write_model(tmp_path / "b", names=("aorta", "brain"), described=plans(patch=PATCH), folds=(3,))
    volume = ct(LPS_AXES["prone, feet first"])

    def labels(folders):
        package = read_package(folders, "test")
        result = NnunetSegmenter(package, device="cpu", threads=1, precision="float32").segment(volume, lambda *_: None)
        names = np.array(["", *[""] * 255], dtype=object)
        for label, name in result.names_by_label.items():
            names[label] = name
        return names[result.labels_zyx]

    alone, over, merged = labels([first]), labels([second]), labels([first, second])
    np.testing.assert_array_equal(merged, np.where(over != "", over, alone))


@pytest.fixture(scope="module")
def small_engine(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("small") / "m")
    limits = Limits(minimum_slices=16, minimum_extent_mm=30)
    return NnunetSegmenter(read_package([folder], "test"), device="cpu", threads=1, limits=limits)


@pytest.mark.parametrize(
    ("hu", "spacing", "reason"),
    [
        (np.zeros((3, 64, 64), np.int16), (1, 1, 5), "3 slices"),
        (np.zeros((20, 64, 64), np.int16), (1, 1, 1), "20.0 mm"),
        (np.full((20, 64, 64), -1000, np.int16), (1, 1, 5), "every voxel .* -1000 HU"),
        (np.full((20, 64, 64), np.nan, np.float32), (1, 1, 5), "not finite"),
        (np.arange(20 * 64 * 64, dtype=np.float32).reshape(20, 64, 64), (900, 900, 900), "GB"),
    ],
)
def test_unsuited_volumes_are_refused_with_the_reason(small_engine, hu, spacing, reason):
    geometry = Geometry(hu.shape, np.diag([*spacing, 1.0]))
    with pytest.raises(SegmentationRefusedError, match=reason):
        small_engine.segment(Volume(hu, geometry), lambda *_: None)


def test_a_volume_smaller_than_the_window_and_one_with_zero_borders_are_segmented(small_engine):
    hu = np.zeros((20, 40, 40), np.int16)
    hu[4:16, 10:30, 8:33] = ct(np.eye(3), (12, 20, 25)).voxels_zyx
    result = small_engine.segment(Volume(hu, Geometry(hu.shape, np.diag([1.5, 1.5, 3, 1.0]))), lambda *_: None)
    assert result.labels_zyx.any()
    assert not result.labels_zyx[:2].any()  # nnU-Net never sees what is 0 HU all around
