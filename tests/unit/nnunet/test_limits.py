"""Required memory is estimated before it is allocated."""

from dataclasses import replace

import numpy as np
import pytest

from inference.nnunet.contract import EngineOptions
from inference.nnunet.limits import memory_estimate_bytes
from inference.nnunet.networks.open_networks import channel_count
from inference.types import Geometry
from tests.support.nnunet_models import plans, random_package, write_model, write_package

OPTIONS = EngineOptions(device="cpu", precision="float32")
GEOMETRY = Geometry((200, 300, 300), np.diag([1.0, 1.0, 1.0, 1.0]))


def test_sums_are_counted_for_the_channels_that_are_summed(tmp_path):
    package = random_package(tmp_path, described=plans(patch=(32, 32, 32), spacing=(1.0, 1.0, 1.0)))
    (part,) = package.parts
    assert channel_count(part) == len(part.names_by_channel) + 1 == 4  # as many features as classes
    fewer_classes = replace(package, parts=(replace(part, names_by_channel={1: "liver", 2: "spleen"}),))
    assert channel_count(fewer_classes.parts[0]) == 4
    sums = 4 * 32 * 300 * 300  # of one channel
    assert memory_estimate_bytes(GEOMETRY, fewer_classes, OPTIONS) > 4 * sums
    fold = replace(part, weights=part.weights * 3)
    logits = replace(package, parts=(fold,))
    assert channel_count(fold) == 4
    assert memory_estimate_bytes(GEOMETRY, logits, OPTIONS) == memory_estimate_bytes(GEOMETRY, package, OPTIONS)


@pytest.mark.parametrize(("resampling", "more"), [("corners", False), ("nnunet", True)])
def test_parts_with_different_normalisation_have_separate_grids_where_nnunet_resamples(tmp_path, resampling, more):
    other = plans()
    other["foreground_intensity_properties_per_channel"]["0"]["mean"] = 21.0
    models = [
        write_model(tmp_path / "a", ("liver",), plans()),
        write_model(tmp_path / "b", ("spleen",), other),
    ]
    package = write_package(tmp_path / "library", *models, resampling=resampling)
    one = replace(package, parts=package.parts[:1])
    grid = 50 * 75 * 75 * 4
    difference = memory_estimate_bytes(GEOMETRY, package, OPTIONS) - memory_estimate_bytes(GEOMETRY, one, OPTIONS)
    assert (difference > grid) == more
