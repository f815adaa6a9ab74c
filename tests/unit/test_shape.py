from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import pdist
from skimage.measure import marching_cubes, mesh_surface_area

from inference.measure import measure
from inference.shape import measure_shape
from inference.types import Geometry, ModelIdentity, Segmentation, Volume

MODEL = ModelIdentity("m", "1", "ab", "nnU-Net")
SHEARED = np.array([[0.7, 0.1, 0.0, 5.0], [0.0, 0.8, 0.3, -3.0], [0.1, 0.0, 2.5, 7.0], [0.0, 0.0, 0.0, 1.0]])


def shape_of(inside: np.ndarray, affine: np.ndarray):
    """The shape of one structure in a label map where another structure surrounds it."""
    labels = np.where(np.pad(inside, 1), 3, 2).astype(np.uint8)
    names = {2: "liver", 3: "spleen", 4: "aorta"}
    return measure_shape(Segmentation(labels, Geometry(labels.shape, affine), names, MODEL))[3]


def test_digital_phantom_has_the_reference_values_of_ibsi() -> None:
    phantom = np.ones((4, 4, 5), dtype=bool)
    for outside in ((1, 2, 0), (2, 0, 3), (2, 0, 4), (2, 2, 2), (3, 0, 3), (3, 0, 4)):
        phantom[outside] = False
    shape = shape_of(phantom, np.diag([2.0, 2.0, 2.0, 1.0]))
    # value and tolerance: IBSI reference manual, digital phantom
    assert shape.mesh_volume_mm3 == pytest.approx(556, abs=4)
    assert shape.surface_area_mm2 == pytest.approx(388, abs=3)
    assert shape.sphericity == pytest.approx(0.843, abs=0.005)
    assert shape.maximum_diameter_mm == pytest.approx(13.1, abs=0.1)
    assert shape.major_axis_mm == pytest.approx(11.4, abs=0.1)
    assert shape.minor_axis_mm == pytest.approx(9.31, abs=0.06)
    assert shape.least_axis_mm == pytest.approx(8.54, abs=0.05)
    assert shape.elongation == pytest.approx(0.816, abs=0.005)
    assert shape.flatness == pytest.approx(0.749, abs=0.005)


@settings(max_examples=40, deadline=None)
@given(arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)).filter(np.any))
def test_counted_cells_and_sums_equal_mesh_and_voxel_centres(inside: np.ndarray) -> None:
    shape = shape_of(inside, SHEARED)
    corners_zyx, triangles, _, _ = marching_cubes(np.pad(inside, 1).astype(np.float32), 0.5)
    points = corners_zyx[:, ::-1] @ SHEARED[:3, :3].T
    a, b, c = np.moveaxis(points[triangles].astype(np.float64), 1, 0)
    assert shape.surface_area_mm2 == pytest.approx(mesh_surface_area(points, triangles), rel=1e-5)
    assert shape.mesh_volume_mm3 == pytest.approx(abs(np.sum(a * np.cross(b, c)) / 6), rel=1e-5)
    assert shape.maximum_diameter_mm == pytest.approx(pdist(points).max(), rel=1e-6)
    centres = np.argwhere(inside)[:, ::-1] @ SHEARED[:3, :3].T
    if len(centres) == 1:
        assert (shape.major_axis_mm, shape.elongation, shape.flatness) == (0.0, None, None)
        return
    variances = np.maximum(np.linalg.eigvalsh(np.cov(centres.T)), 0)
    axes = (shape.least_axis_mm, shape.minor_axis_mm, shape.major_axis_mm)
    assert axes == pytest.approx(4 * np.sqrt(variances), rel=1e-6, abs=1e-5)
    assert (shape.flatness, shape.elongation) == pytest.approx((axes[0] / axes[2], axes[1] / axes[2]))


def test_shape_of_a_ball_is_nearly_spherical() -> None:
    z, y, x = np.indices((41, 41, 41)) - 20
    shape = shape_of(x**2 + y**2 + z**2 <= 18**2, np.eye(4))
    assert shape.mesh_volume_mm3 == pytest.approx(4 / 3 * np.pi * 18**3, rel=0.01)
    assert shape.maximum_diameter_mm == pytest.approx(37, abs=0.5)
    assert shape.elongation == pytest.approx(1, abs=1e-3)
    assert 0.9 < shape.sphericity < 1


def test_shape_is_measured_only_on_request() -> None:
    labels = np.zeros((4, 5, 6), dtype=np.uint8)
    labels[1:3, 1:3, 1:3] = 2
    geometry = Geometry(labels.shape, np.eye(4))
    volume = Volume(np.zeros(labels.shape, dtype=np.int16), geometry)
    segmentation = Segmentation(labels, geometry, {2: "liver", 3: "spleen"}, MODEL)
    (plain,) = measure(volume, segmentation).structures
    (shaped,) = measure(volume, segmentation, with_shape=True).structures
    assert plain.shape is None
    assert shaped.shape == measure_shape(segmentation)[2]
