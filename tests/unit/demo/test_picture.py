import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.demo.picture import legend_groups, write_picture
from dicom_node.encode.pages.planes import edges, upright
from dicom_node.results import StoredSegment
from inference.types import Geometry, Volume

AXES = [
    ([1, 0, 0], [0, 1, 0], [0, 0, 1]),  # axial, head first, supine
    ([-1, 0, 0], [0, -1, 0], [0, 0, 1]),  # prone
    ([-1, 0, 0], [0, 1, 0], [0, 0, -1]),  # feet first
    ([0, 1, 0], [0, 0, -1], [-1, 0, 0]),  # sagittal
    ([1, 0, 0], [0, 0, -1], [0, 1, 0]),  # coronal
    ([0.99, 0.1, 0], [-0.1, 0.99, 0], [0, 0, 1]),  # slightly oblique
]


@pytest.mark.parametrize("axes", AXES)
@given(seed=st.integers(0, 1000))
def test_every_acquisition_is_reoriented_to_left_posterior_superior(axes, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(3, 7, 3))
    affine = np.eye(4)
    affine[:3, :3] = np.array(axes, dtype=float).T * rng.uniform(0.5, 3, 3)
    affine[:3, 3] = rng.uniform(-500, 500, 3)
    geometry = Geometry(shape, affine)
    z, y, x = np.indices(shape)
    places = np.einsum("ij,jzyx->izyx", affine[:3, :3], np.stack([x, y, z]))
    labels = rng.integers(0, 5, shape).astype(np.uint8)
    for patient_axis, array_axis in ((0, 2), (1, 1), (2, 0)):
        view = upright(Volume(places[patient_axis].astype(np.float32), geometry), labels)
        assert (np.diff(view.hu_zyx, axis=array_axis) > 0).all()
        assert view.hu_zyx.shape == view.labels_zyx.shape
        assert sorted(view.labels_zyx.ravel()) == sorted(labels.ravel())


def test_edge_is_a_labelled_pixel_next_to_another_label():
    labels = np.zeros((5, 5), np.uint8)
    labels[1:4, 1:4] = 3
    assert edges(labels).sum() == 8
    assert not edges(np.full((4, 4), 2, np.uint8)).any()


def test_ribs_and_pairs_share_a_legend_line():
    names = [
        "rib_left_1",
        "rib_right_1",
        "Rib left 2",
        "vertebrae_L1",
        "vertebrae_T12",
        "kidney_left",
        "Kidney right",
        "liver",
    ]
    segments = [StoredSegment(i + 1, name, "", (20000, 30000, 32000)) for i, name in enumerate(names)]
    groups = legend_groups(
        segments, dict.fromkeys(names, 10.0), {"liver": "organ", "kidney_left": "organ", "Kidney right": "organ"}
    )
    assert [(e.text, e.volume_ml) for e in groups["organ"]] == [("Kidney (2)", 20.0), ("Liver", 10.0)]
    assert {(e.text, e.volume_ml) for e in groups["other"]} == {("Ribs (3)", 30.0), ("Vertebrae (2)", 20.0)}


@pytest.mark.parametrize("shape", [(40, 20, 24), (6, 40, 48)])
def test_picture_is_written_for_tall_and_flat_volumes(shape, tmp_path):
    voxels = np.full(shape, -1000, np.int16)
    labels = np.zeros(shape, np.uint8)
    middle = tuple(slice(n // 4, 3 * n // 4) for n in shape)
    voxels[middle], labels[middle] = 40, 1
    segments = [StoredSegment(1, "liver", "1.2", (30000, 45000, 42000))]
    groups = legend_groups(segments, {"liver": 1500.0}, {"liver": "organ"})
    path = tmp_path / "picture.png"
    volume = Volume(voxels, Geometry(shape, np.diag([2.0, 2.0, 3.0, 1.0])))
    write_picture(path, volume, labels, segments=segments, groups=groups, title="one", subtitle="two")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
