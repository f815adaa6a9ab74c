"""The tables of classes: parts divide the published classes, and agree with the known models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.labelmaps import LabelMap
from inference.models.tasks import tasks
from inference.parts import parts, total
from inference.structures import catalogue
from inference.types import Geometry


@pytest.mark.parametrize(
    ("classes", "count", "sizes"), [("v1", 104, (17, 24, 18, 21, 24)), ("v2", 117, (24, 26, 18, 23, 26))]
)
def test_parts_are_a_partition_of_the_classes(classes, count, sizes):
    whole, divided = total(classes), parts(classes)
    assert tuple(divided) == ("organs", "vertebrae", "cardiac", "muscles", "ribs")
    assert tuple(len(part.names_by_label) for part in divided.values()) == sizes
    names = [name for part in divided.values() for name in part.names_by_label.values()]
    assert len(names) == len(set(names)) == count
    assert set(names) == set(whole.names_by_label.values()) <= catalogue().keys()
    for each in (whole, *divided.values()):
        assert list(each.names_by_label) == list(range(1, len(each.names_by_label) + 1)), "nnU-Net's labels"


def test_version_2_equals_the_classes_of_the_models():
    task = tasks()["total"]
    assert tuple(total("v2").names_by_label.values()) == task.structures
    for part, known in zip(parts("v2").values(), task.parts, strict=True):
        assert tuple(part.names_by_label.values()) == known.structures
        assert known.dataset.startswith(f"Dataset{part.dataset_id}_")


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["v1", "v2"]), st.integers(0, 2**32 - 1))
def test_parts_of_a_label_map_combine_to_the_label_map(classes, seed):
    whole = total(classes)
    labels = np.random.default_rng(seed).integers(0, len(whole.names_by_label) + 1, (3, 7, 11)).astype(np.uint8)
    label_map = LabelMap(labels, whole.names_by_label, Geometry(labels.shape, np.eye(4)))
    together = np.zeros_like(labels)
    for part in parts(classes).values():
        own = label_map.relabelled(part.label_by_name)
        assert not (together[own.labels_zyx != 0]).any(), "each voxel is in one part"
        together += own.relabelled(whole.label_by_name).labels_zyx
    assert np.array_equal(together, labels)
