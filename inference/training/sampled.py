"""nnU-Net's trainer, made cheap enough for two CPU cores and a hundred structures.

With 105 classes, the last convolution and the loss at every voxel of a patch cost more than the rest of the network.
Here both see a sample of the voxels, with weights that keep the sums unbiased (:mod:`inference.training.loss`): every
voxel of small structures, most voxels at boundaries, few of the interior. There is no deep supervision; the optimiser
is AdamW with one warm-up and one cosine over all iterations, and the result is a moving average of the weights, which
validation uses too. Data loader, run loop, validation and checkpoints are nnU-Net's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import (
    BrightnessAdditiveTransform,
    MultiplicativeBrightnessTransform,
)
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from inference.errors import TrainingError
from inference.training.loss import sampled_loss
from inference.training.trainer import NodeTrainer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inference.training.configuration import TrainingConfiguration

AVERAGING = 0.995
WARM_UP_FRACTION = 0.04
NARROW_FIELD_PROBABILITY = 0.35
"""Share of patches that imitate a short or narrow scan, padded as nnU-Net pads a volume smaller than its patch."""
SHORTEST_FIELD_MM = 140.0
SMALL_STRUCTURE_VOXELS = 1500
BOUNDARY_SHARE, INTERIOR_SHARE, BACKGROUND_SHARE = 0.6, 0.12, 0.06
_OUTSIDE = -1
"""nnU-Net's label of padding."""


class SampledTrainer(NodeTrainer):
    """See the module docstring."""

    average: dict[str, torch.Tensor]

    def configure(self, configuration: TrainingConfiguration, *args: Any, **kwargs: Any) -> None:
        """Set what differs from nnU-Net, before ``initialize``."""
        super().configure(configuration, *args, **kwargs)
        if self.is_ddp:  # the last convolution is called outside the wrapper that synchronises gradients
            raise TrainingError("the trainer 'sampled' uses one device; for several GPUs choose 'nnunet'")
        self.enable_deep_supervision = False
        self.oversample_foreground_percent, self.probabilistic_oversampling = 0.5, True

    def _do_i_compile(self) -> bool:
        return False  # the network is called without its last layer

    def initialize(self) -> None:
        """Build the network; cases are kept in memory."""
        super().initialize()
        self.dataset_class = CasesInMemory
        self.average = {name: value.clone() for name, value in self.network.state_dict().items()}

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Cosine]:
        """AdamW, with a learning rate that changes by iteration."""
        optimiser = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimiser, Cosine(optimiser, self.initial_lr, self.num_epochs, self.num_iterations_per_epoch)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802 - nnU-Net's name
        """Cut patches in their final size, because nothing is rotated or scaled."""
        rotation, *_ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return rotation, False, tuple(self.configuration_manager.patch_size), None

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """Vary field of view, blur, contrast and noise within the range of scanners; padding keeps its label."""
        del args, kwargs
        shortest = SHORTEST_FIELD_MM / self.configuration_manager.spacing[0]
        return ComposeTransforms(
            [
                RandomTransform(GaussianBlurTransform((0.25, 0.65), synchronize_axes=True), apply_probability=0.3),
                MultiplicativeBrightnessTransform((0.92, 1.08), synchronize_channels=True),
                BrightnessAdditiveTransform(mu=0.0, sigma=0.03, synchronize_channels=True),
                RandomTransform(GaussianNoiseTransform((0.0, 0.0064)), apply_probability=0.3),
                NarrowField(max(2, round(shortest))),
            ]
        )

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step at the learning rate of its iteration; the moving average follows."""
        self.lr_scheduler.set_iteration(self.current_epoch * self.num_iterations_per_epoch + self._iteration)
        result = super().train_step(batch)
        done = self.current_epoch * self.num_iterations_per_epoch + self._iteration
        keep = min(AVERAGING, (1 + done) / (10 + done))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
        return result

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Loss on a sample; overlap over every voxel, by counting instead of nnU-Net's one-hot masks (0.3 GB)."""
        data, target = self._on_device(batch)
        target = target.clamp(min=0)
        with self.reduced_precision():
            found = self.network(data).argmax(1).flatten()
        truth, classes = target.flatten().long(), self.label_manager.num_segmentation_heads
        counts = [torch.bincount(each, minlength=classes)[1:] for each in (truth[found == truth], found, truth)]
        both, predicted, true = (each.cpu().numpy().astype(np.float64) for each in counts)
        loss = self._training_loss(data, target).detach().cpu().numpy()
        return {"loss": loss, "tp_hard": both, "fp_hard": predicted - both, "fn_hard": true - both}

    def _training_loss(self, data: torch.Tensor, target: Any) -> torch.Tensor:
        head = self.network.decoder.seg_layers[-1]
        self.network.decoder.seg_layers[-1] = torch.nn.Identity()
        try:
            with self.reduced_precision():
                features = self.network(data)
        finally:
            self.network.decoder.seg_layers[-1] = head
        chosen, weights = sample_voxels(target[:, 0].cpu().numpy())
        voxels = torch.from_numpy(chosen).to(self.device)
        channels = features.shape[1]
        values = features.movedim(1, -1).reshape(-1, channels)[voxels].float()
        scores = torch.nn.functional.linear(values, head.weight.reshape(-1, channels), head.bias)
        labels = target.reshape(-1)[voxels].long()
        return sampled_loss(scores, labels, torch.from_numpy(weights).to(self.device))

    def on_validation_epoch_start(self) -> None:
        """Validate the moving average, which is the result."""
        self._live = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        super().on_validation_epoch_start()

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Restore the trained weights."""
        self.network.load_state_dict(self._live)
        super().on_validation_epoch_end(val_outputs)

    def on_train_end(self) -> None:
        """Make the average the result."""
        self.network.load_state_dict(self.average)
        super().on_train_end()

    def further_state(self) -> dict[str, Any]:
        """The moving average."""
        return {"average": self.average}

    def load_further_state(self, state: Mapping[str, Any]) -> None:
        """Restore the moving average."""
        for name, value in state["average"].items():
            self.average[name].copy_(value)


class Cosine:
    """A linear warm-up, then a cosine down to nearly 0; nnU-Net calls ``step`` once per epoch."""

    def __init__(self, optimiser: torch.optim.Optimizer, peak: float, epochs: int, iterations_per_epoch: int) -> None:
        self._optimiser, self._peak = optimiser, peak
        self._per_epoch, self._all = iterations_per_epoch, epochs * iterations_per_epoch

    def step(self, epoch: int) -> None:
        """Set the learning rate of the first iteration of ``epoch``."""
        self.set_iteration(epoch * self._per_epoch)

    def set_iteration(self, iteration: int) -> None:
        """Set the learning rate of ``iteration``, counted from 0 over all epochs."""
        for group in self._optimiser.param_groups:
            group["lr"] = self.rate(iteration)

    def rate(self, iteration: int) -> float:
        """The learning rate of ``iteration``."""
        progress = iteration / self._all
        if progress < WARM_UP_FRACTION:
            return self._peak * (0.05 + 0.95 * progress / WARM_UP_FRACTION)
        falling = (progress - WARM_UP_FRACTION) / (1 - WARM_UP_FRACTION)
        return self._peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling)))


class CasesInMemory(nnUNetDatasetBlosc2):  # type: ignore[misc] # no types
    """nnU-Net's preprocessed cases, each read once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept: dict[str, Any] = {}

    def load_case(self, identifier: str) -> Any:
        """Image, labels, no previous stage, properties."""
        if identifier not in self._kept:
            data, labels, previous, properties = super().load_case(identifier)
            self._kept[identifier] = data[:].astype(np.float16), labels[:], previous, properties
        return self._kept[identifier]


class NarrowField(BasicTransform):  # type: ignore[misc] # batchgeneratorsv2 has no types
    """Keep a random part of some patches, moved to the centre, and pad the rest as nnU-Net pads a small volume."""

    def __init__(self, shortest_planes: int) -> None:
        super().__init__()
        self.shortest_planes = shortest_planes

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """The source and the target position of the part."""
        if torch.rand(1).item() >= NARROW_FIELD_PROBABILITY:
            return {"source": None, "goal": None}
        size = list(data_dict["image"].shape[1:])
        field = list(size)
        field[0] = int(torch.randint(min(self.shortest_planes, size[0]), size[0] + 1, (1,)))
        if torch.rand(1).item() < 0.7:
            field[2] = max(1, round(size[2] * (0.78 + 0.22 * torch.rand(1).item())))
        first = [int(torch.randint(0, n - m + 1, (1,))) for n, m in zip(size, field, strict=True)]
        return {
            "source": (slice(None), *(slice(a, a + m) for a, m in zip(first, field, strict=True))),
            "goal": (slice(None), *(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(size, field, strict=True))),
        }

    def _apply_to_image(self, img: torch.Tensor, source: Any, goal: Any) -> torch.Tensor:
        return _moved(img, source, goal, 0)

    def _apply_to_segmentation(self, segmentation: torch.Tensor, source: Any, goal: Any) -> torch.Tensor:
        return _moved(segmentation, source, goal, _OUTSIDE)


def _moved(values: torch.Tensor, source: Any, goal: Any, padding: int) -> torch.Tensor:
    if source is None:
        return values
    result = torch.full_like(values, padding)
    result[goal] = values[source]
    return result


def sample_voxels(labels_bzyx: Any) -> tuple[Any, Any]:
    """Draw voxels of patches [b, z, y, x]: their flat indices, and how many voxels each represents.

    Voxels outside the image (label -1) are never drawn.
    """
    flat = labels_bzyx.ravel()
    inside = flat != _OUTSIDE
    structures = np.where(inside, flat, 0)
    share = np.where(_boundary(labels_bzyx).ravel(), BOUNDARY_SHARE, INTERIOR_SHARE).astype(np.float32)
    share[(structures == 0) & (share < BOUNDARY_SHARE)] = BACKGROUND_SHARE
    small = np.bincount(structures) < SMALL_STRUCTURE_VOXELS
    small[0] = False
    share[small[structures]] = 1.0
    drawn = np.random.random(len(share)) < share * inside  # noqa: NPY002 - seeded with nnU-Net's own draws
    chosen = np.flatnonzero(drawn)
    return chosen, 1.0 / share[chosen]


def _boundary(labels_bzyx: Any) -> Any:
    """Voxels with another label among their 26 neighbours."""
    low = high = labels_bzyx
    for axis in (1, 2, 3):
        low, high = _extreme(low, axis, np.minimum), _extreme(high, axis, np.maximum)
    return low != high


def _extreme(values: Any, axis: int, choose: Any) -> Any:
    result = values.copy()
    ahead = (*(slice(None),) * axis, slice(1, None))
    behind = (*(slice(None),) * axis, slice(None, -1))
    choose(result[ahead], values[behind], out=result[ahead])
    choose(result[behind], values[ahead], out=result[behind])
    return result
