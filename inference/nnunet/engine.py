"""A loaded nnU-Net model: HU in, labels on the same grid out."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from inference.errors import ModelDigestError, SegmentationRefusedError
from inference.nnunet.grid import Canonical, resample, resampled_shape
from inference.nnunet.network import load_networks
from inference.nnunet.package import read_package
from inference.nnunet.restore import Restorer
from inference.nnunet.tiles import averaged_logits, window_count
from inference.types import Segmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from inference.nnunet.package import ModelPackage, Normalisation, Part
    from inference.nnunet.restore import Interpolation
    from inference.types import Geometry, ModelIdentity, Volume

Precision = Literal["auto", "float32", "bfloat16", "float16"]
_RESAMPLING_SHARE = 0.03
"""Part of the work, for the progress display, that is done before the first window."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a volume must have to be segmented by a model.

    ``memory_bytes`` bounds the estimated need beside the volume itself; None: 80 % of the machine's memory.
    """

    minimum_slices: int = 1
    minimum_extent_mm: float = 0.0
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _LoadedPart:
    part: Part
    networks: list[nn.Module]
    label_by_channel: NDArray[np.uint8]


class NnunetSegmenter:
    """An nnU-Net v2 model, loaded and ready; a :class:`inference.types.Segmenter`.

    Args:
        package: what :func:`inference.nnunet.package.read_package` read.
        device: ``auto`` takes CUDA where there is one.
        threads: CPU threads of torch; 0: all cores.
        precision: of the convolutions; ``auto``: float16 on CUDA, bfloat16 on a CPU that has it, else float32.
            Logits are always averaged in float32.
        interpolation: how labels come back to the source grid, see :mod:`inference.nnunet.restore`.
        limits: which volumes are refused.

    Raises:
        ModelPackageError: a checkpoint is poisoned or does not fit; nothing of it was executed.
    """

    def __init__(
        self,
        package: ModelPackage,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int = 0,
        precision: Precision = "auto",
        interpolation: Interpolation = "smooth",
        limits: Limits = Limits(),
    ) -> None:
        self._package = package
        self._limits = limits
        self._interpolation = interpolation
        self._device = _device(device)
        self._precision = _precision(precision, self._device)
        if self._device.type == "cpu":
            torch.set_num_threads(threads or os.cpu_count() or 1)
        label_by_name = {name: label for label, name in package.names_by_label.items()}
        self._parts = [self._load(part, label_by_name) for part in package.parts]

    @classmethod
    def load(
        cls,
        folders: Sequence[Path],
        *,
        name: str,
        version: str = "1",
        intended_use: str = "Research use only - not for clinical use",
        digest: str | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int = 0,
        limits: Limits = Limits(),
    ) -> NnunetSegmenter:
        """Read, check and load the model in ``folders``; its digest must be ``digest`` where one is given.

        Raises:
            ModelDigestError: the files are not the ones that ``digest`` approves.
            ModelPackageError: the model is not sound.
        """
        package = read_package(folders, name, version, intended_use)
        check_digest(package.identity, digest)
        return cls(package, device=device, threads=threads, limits=limits)

    def _load(self, part: Part, label_by_name: Mapping[str, int]) -> _LoadedPart:
        labels = np.zeros(len(part.names_by_channel) + 1, np.uint8)
        for channel, name in part.names_by_channel.items():
            labels[channel] = label_by_name[name]
        networks = [
            network.to(self._device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
            for network in load_networks(part)
        ]
        return _LoadedPart(part, networks, labels)

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is."""
        return self._package.identity

    @property
    def names_by_label(self) -> Mapping[int, str]:
        """Every label the model can give."""
        return self._package.names_by_label

    def segment(self, volume: Volume, progress: Callable[[float, str], None]) -> Segmentation:
        """Label every voxel of ``volume``.

        Raises:
            SegmentationRefusedError: the volume is too small, too large, constant, not finite or not orthogonal.
        """
        self._check(volume)
        labels = np.zeros(volume.geometry.shape_zyx, np.uint8)
        share = 1.0 / len(self._parts)
        for number, loaded in enumerate(self._parts):

            def of_this_part(done: float, stage: str, base: float = number * share) -> None:
                progress(base + share * done, stage)

            self._segment_part(loaded, volume, labels, of_this_part)
        progress(1.0, "done")
        return Segmentation(labels, volume.geometry, self.names_by_label, self.identity)

    def _segment_part(
        self, loaded: _LoadedPart, volume: Volume, labels: NDArray[np.uint8], progress: Callable[[float, str], None]
    ) -> None:
        part = loaded.part
        progress(0.0, "resample")
        canonical = Canonical.of(volume.geometry, part.axes)
        source = canonical.view(volume.voxels_zyx)
        shape = resampled_shape(source.shape, canonical.spacing_mm(volume.geometry), part.spacing_mm)
        resampled = resample(source, shape)
        offset, box = nonzero_box(resampled)
        image = torch.from_numpy(normalise(resampled[box], part.normalisation)).to(self._device)
        progress(_RESAMPLING_SHARE, "inference")
        restorer = Restorer(
            canonical.view(labels),
            shape,
            offset,
            _shape3(image.shape),
            loaded.label_by_channel,
            interpolation=self._interpolation,
        )
        windows = window_count(image.shape, part.patch_size)
        done = 0

        def on_window() -> None:
            nonlocal done
            done += 1
            progress(_RESAMPLING_SHARE + (1 - _RESAMPLING_SHARE) * done / windows, "inference")

        for first, logits in averaged_logits(
            image, part.patch_size, lambda x: self._predict(loaded.networks, x), len(loaded.label_by_channel), on_window
        ):
            restorer.accept(first, logits)

    def _predict(self, networks: Sequence[nn.Module], window: torch.Tensor) -> torch.Tensor:
        window = window.contiguous(memory_format=torch.channels_last_3d)
        reduced = self._precision != torch.float32
        with torch.autocast(self._device.type, dtype=self._precision if reduced else torch.bfloat16, enabled=reduced):
            logits: torch.Tensor = networks[0](window)
            for network in networks[1:]:
                logits = logits.float() + network(window)
        return logits / len(networks) if len(networks) > 1 else logits

    def _check(self, volume: Volume) -> None:
        geometry, voxels = volume.geometry, volume.voxels_zyx
        if not geometry.is_orthogonal:
            raise SegmentationRefusedError("the axes of the volume are not perpendicular")
        if geometry.shape_zyx[0] < self._limits.minimum_slices:
            raise SegmentationRefusedError(
                f"{geometry.shape_zyx[0]} slices; the model needs at least {self._limits.minimum_slices}"
            )
        extents = [n * mm for n, mm in zip(geometry.shape_zyx[::-1], geometry.spacing_xyz_mm, strict=True)]
        if min(extents) < self._limits.minimum_extent_mm:
            seen = " x ".join(f"{extent:.1f}" for extent in extents)
            raise SegmentationRefusedError(
                f"the volume measures {seen} mm; the model needs {self._limits.minimum_extent_mm:g} mm along every axis"
            )
        if voxels.dtype == np.float32 and not np.isfinite(voxels).all():
            raise SegmentationRefusedError("the volume holds HU that are not finite numbers")
        if voxels.min() == voxels.max():
            raise SegmentationRefusedError(f"every voxel of the volume is {voxels.min()} HU")
        self._check_memory(geometry)

    def _check_memory(self, geometry: Geometry) -> None:
        limit = self._limits.memory_bytes or _memory_of_the_machine() * 4 // 5
        need = max(memory_estimate_bytes(loaded.part, geometry) for loaded in self._parts)
        if need > limit:
            raise SegmentationRefusedError(
                f"segmenting {geometry.shape_zyx} voxels would take about {need / 1e9:.1f} GB; "
                f"at most {limit / 1e9:.1f} GB may be used"
            )


def check_digest(identity: ModelIdentity, approved: str | None) -> None:
    """Raises ModelDigestError unless ``approved`` is None or the model's digest."""
    if approved is not None and approved.lower() != identity.digest:
        raise ModelDigestError(
            f"model {identity.name!r}: the files have SHA-256 {identity.digest}, approved is {approved.lower()}"
        )


def nonzero_box(voxels: NDArray[np.float32]) -> tuple[tuple[int, int, int], tuple[slice, slice, slice]]:
    """The smallest box that holds every voxel that is not 0 HU (nnU-Net's crop_to_nonzero): its first voxel and slices.

    Everything, where the whole array is 0.
    """
    filled = voxels != 0
    bounds = []
    for axis in range(3):
        found = np.flatnonzero(filled.any(axis=tuple(a for a in range(3) if a != axis)))
        bounds.append((int(found[0]), int(found[-1]) + 1) if found.size else (0, voxels.shape[axis]))
    (z0, z1), (y0, y1), (x0, x1) = bounds
    return (z0, y0, x0), (slice(z0, z1), slice(y0, y1), slice(x0, x1))


def normalise(hu: NDArray[np.float32], constants: Normalisation) -> NDArray[np.float32]:
    """nnU-Net's CTNormalization, in float32 as it computes."""
    clipped = np.clip(hu, constants.lowest_hu, constants.highest_hu).astype(np.float32)
    clipped -= np.float32(constants.mean_hu)
    clipped /= np.float32(max(constants.sd_hu, 1e-8))
    return np.ascontiguousarray(clipped)


def memory_estimate_bytes(part: Part, geometry: Geometry) -> int:
    """Memory that segmenting a volume on ``geometry`` takes beside the volume itself: an upper bound, not a promise."""
    canonical = Canonical.of(geometry, part.axes)
    zyx = (0, 1, 2)
    source = [geometry.shape_zyx[canonical.source_axes[axis]] for axis in zyx]
    shape = resampled_shape(source, canonical.spacing_mm(geometry), part.spacing_mm)
    padded = [max(n, w) for n, w in zip(shape, part.patch_size, strict=True)]
    classes = len(part.names_by_channel) + 1
    window = math.prod(part.patch_size)
    sums = 4 * part.patch_size[0] * padded[1] * padded[2] * (classes + 1)
    network = 4 * window * (2 * classes + 6 * max(part.architecture.features_per_stage[:1]))
    return math.prod(geometry.shape_zyx) + 3 * 4 * math.prod(padded) + sums + network


def _shape3(shape: Sequence[int]) -> tuple[int, int, int]:
    return shape[0], shape[1], shape[2]


def _memory_of_the_machine() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()):
        return torch.device("cuda")
    return torch.device("cpu")


def _precision(wanted: Precision, device: torch.device) -> torch.dtype:
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if "avx512_bf16" in _cpu_flags() else torch.float32


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:  # noqa: PTH123 - not a path of ours
            return next((set(line.split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return set()
