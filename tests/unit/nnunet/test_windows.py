"""Sliding windows and their averages, against nnU-Net's own predictor."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

from inference.nnunet.host.averaging import averaged, averaged_half
from inference.nnunet.windows import Windows, gaussian_weights, window_starts
from tests.support.nnunet_reference import half_logits

PATCH = (16, 12, 20)
SHAPES = [(40, 21, 30), PATCH, (5, 30, 9), (17, 12, 45), (1, 1, 1), (33, 25, 41)]


class Convolution:
    """A small network; ``run`` returns the same memory each time, as a backend may."""

    channels = 3

    def __init__(self, seed=0, *, patch=PATCH):
        torch.manual_seed(seed)
        self.module = torch.nn.Conv3d(1, self.channels, 5, padding=2).eval()
        self.memory = np.empty((1, self.channels, *patch), np.float32)
        self.runs = 0

    def run(self, windows):
        self.runs += 1
        with torch.no_grad():
            self.memory[...] = self.module(torch.from_numpy(windows)[:, None]).numpy()
        view = self.memory.view()
        view.setflags(write=False)
        return view


def volume(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def joined(slabs, shape):
    whole = np.empty((Convolution.channels, *shape), np.float32)
    expected = 0
    for first, values in slabs:
        assert first == expected, "slabs arrive in ascending order without gaps"
        expected = first + values.shape[1]
        whole[:, first:expected] = values
    assert expected == shape[0]
    return whole


def nnunet_s_logits(image, networks, step):
    return half_logits(image, [network.module for network in networks], Convolution.channels, PATCH, step)


@settings(max_examples=80, deadline=None)
@given(st.integers(8, 400), st.integers(8, 200), st.sampled_from([0.25, 0.5, 0.8, 1.0]))
def test_windows_start_at_the_same_places_as_nnunets(size, window, step):
    assume(size >= window)
    assert [window_starts(size, window, step)] == compute_steps_for_sliding_window((size,), (window,), step)


@pytest.mark.parametrize("patch", [(16, 24, 20), (64, 64, 64), (112, 112, 128)])
def test_gaussian_weights_equal_nnunets_bit_for_bit(patch):
    theirs = compute_gaussian(patch, sigma_scale=1 / 8, value_scaling_factor=10, device=torch.device("cpu"))
    np.testing.assert_array_equal(gaussian_weights(patch), theirs.numpy())
    assert gaussian_weights(patch).min() > 0


@pytest.mark.parametrize("step", [0.5, 0.8])
@pytest.mark.parametrize("shape", SHAPES)
def test_half_precision_average_equals_nnunets_bit_for_bit(shape, step):
    image, networks = volume(shape), [Convolution(seed) for seed in (0, 1, 2)]
    for folds in (networks[:1], networks):
        theirs = nnunet_s_logits(image, folds, step)
        assert theirs.dtype == torch.half
        windows = Windows.of(shape, PATCH, step)
        ours = joined(averaged_half(image, windows, folds, lambda: None), shape)
        np.testing.assert_array_equal(ours, theirs.float().numpy())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_average_equals_nnunets_except_for_its_rounding(shape, threads):
    image, network, calls = volume(shape), Convolution(), []
    windows = Windows.of(shape, PATCH, 0.5)
    ours = joined(averaged(image, windows, network, lambda: calls.append(1), threads), shape)
    assert len(calls) == network.runs == windows.count
    theirs = nnunet_s_logits(image, [network], 0.5).float().numpy()
    # where only the far corner of a window reaches, its half-precision products have almost no significant bits
    sound = windows.total(gaussian_weights(PATCH).astype(np.float32))[windows.inside] > 0.01
    np.testing.assert_allclose(ours[:, sound], theirs[:, sound], atol=6e-3)


def test_windows_without_needed_voxels_are_not_run_and_leave_nan():
    shape = (48, 36, 20)
    needed = np.zeros(shape, bool)
    needed[4:10, 3:8, 2:5] = True
    whole, some = Windows.of(shape, PATCH, 1.0), Windows.of(shape, PATCH, 1.0, needed)
    assert (whole.count, some.count) == (9, 1)
    image, network = volume(shape), Convolution()
    all_values = joined(averaged(image, whole, network, lambda: None), shape)
    network.runs = 0
    values = joined(averaged(image, some, network, lambda: None), shape)
    assert network.runs == 1
    np.testing.assert_array_equal(values[:, :16, :12], all_values[:, :16, :12])
    assert np.isnan(values[:, 16:]).all()
    assert np.isnan(values[:, :16, 12:]).all()


class Copies:
    """A network with many identical channels that take no memory."""

    channels = 60

    def run(self, windows):
        return np.broadcast_to(windows[:, None], (1, self.channels, *PATCH))


def test_sums_are_held_for_at_most_the_depth_of_a_window():
    shape, network = (200, 24, 40), Copies()
    image, windows = volume(shape), Windows.of(shape, PATCH, 0.5)
    depth_of_sums = network.channels * image.nbytes * PATCH[0] / shape[0]
    for slabs in (
        averaged(image, windows, network, lambda: None),
        averaged_half(image, windows, [network], lambda: None),
    ):
        tracemalloc.start()
        for _ in slabs:
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 * depth_of_sums + 4 * image.nbytes < network.channels * image.nbytes / 4


def test_single_window_is_run_even_if_nothing_is_needed():
    assert Windows.of((4, 4, 4), PATCH, 0.5, np.zeros((4, 4, 4), bool)).count == 1
