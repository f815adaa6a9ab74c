"""The parts of the sampled trainer: an unbiased sample inside the image, the schedule, the field of view."""

import numpy as np
import pytest
import torch

from inference.training.loss import sampled_loss
from inference.training.sampled import Cosine, NarrowField, sample_voxels


@pytest.fixture
def labels_bzyx():
    """A large and a small structure in the background, and 4 planes of padding."""
    labels = np.zeros((1, 40, 40, 40), np.int16)
    labels[0, 5:30, 5:35, 5:35] = 1
    labels[0, 32:34, 10:14, 10:14] = 2
    labels[0, 36:] = -1
    return labels


def test_weights_of_the_sample_add_up_to_the_voxels_of_each_label(labels_bzyx):
    np.random.seed(4)  # noqa: NPY002 - the generator that is drawn from
    voxels, weights = sample_voxels(labels_bzyx)
    drawn = labels_bzyx.ravel()[voxels]
    assert drawn.min() == 0
    assert len(voxels) < 0.4 * labels_bzyx.size
    for label in (0, 1):
        assert weights[drawn == label].sum() == pytest.approx((labels_bzyx == label).sum(), rel=0.05)
    assert (drawn == 2).sum() == (labels_bzyx == 2).sum()


def test_loss_of_a_sample_is_the_loss_of_all_voxels():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(60_000, 6, generator=generator) * 2
    labels = torch.randint(0, 6, (60_000,), generator=generator)
    everything = sampled_loss(scores, labels, torch.ones(60_000))
    chosen = torch.rand(60_000, generator=generator) < 0.3
    sample = sampled_loss(scores[chosen], labels[chosen], torch.full((int(chosen.sum()),), 1 / 0.3))
    assert float(sample) == pytest.approx(float(everything), rel=0.02)


def test_loss_of_a_perfect_prediction_is_zero():
    labels = torch.tensor([0, 1, 2, 2, 1, 0] * 50)
    scores = torch.nn.functional.one_hot(labels, 3).float() * 40
    assert float(sampled_loss(scores, labels, torch.ones(300))) == pytest.approx(0.0, abs=1e-4)


def test_loss_of_a_patch_outside_the_image_is_zero_and_changes_nothing():
    voxels, weights = sample_voxels(np.full((1, 4, 4, 4), -1, np.int16))
    weight = torch.ones(3, 2, requires_grad=True)
    scores = torch.nn.functional.linear(torch.ones(64, 2)[torch.from_numpy(voxels)], weight)
    loss = sampled_loss(scores, torch.zeros(len(voxels), dtype=torch.int64), torch.from_numpy(weights))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not weight.grad.any()


def test_learning_rate_rises_and_falls_by_iteration():
    optimiser = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], 1.0)
    schedule = Cosine(optimiser, 1.0, epochs=10, iterations_per_epoch=10)
    rates = [schedule.rate(iteration) for iteration in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[4] == pytest.approx(1.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.02
    schedule.step(5)
    assert optimiser.param_groups[0]["lr"] == rates[50]


def test_narrow_field_of_view_is_applied_equally_to_image_and_labels():
    torch.manual_seed(0)
    image = torch.arange(1.0, 1 + 20 * 6 * 10).reshape(1, 20, 6, 10)
    narrow = NarrowField(shortest_planes=5)
    sizes = set()
    for _ in range(60):
        moved = narrow(image=image.clone(), segmentation=image.to(torch.int16).clone())
        inside = moved["segmentation"] != -1
        assert torch.equal(moved["image"][inside], moved["segmentation"][inside].float())
        assert not moved["image"][~inside].any()
        sizes.add(int(inside[0, :, 3, 5].sum()))
    assert min(sizes) >= 5
    assert 20 in sizes
    assert len(sizes) > 3
