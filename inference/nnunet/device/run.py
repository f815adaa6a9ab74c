"""From HU to labels on one device, part by part, falling back to less memory when it runs out."""

from __future__ import annotations

import gc
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar, cast

import torch

from inference.models.weights import shape_by_name
from inference.nnunet.device.fallback import MemoryFallback
from inference.nnunet.device.network import CapturedNetwork, CompiledNetwork, ResidentParts, can_compile
from inference.nnunet.device.restore import DeviceRestorer
from inference.nnunet.device.volume import DeviceVolume
from inference.nnunet.device.windows import Queued, averaged_half_slabs, averaged_slabs
from inference.nnunet.failures import is_out_of_memory, reason_of
from inference.nnunet.windows import Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from inference.models.package import ModelPackage, Part
    from inference.nnunet.axes import Interpolation
    from inference.nnunet.contract import EngineOptions, OpenPart, TensorNetwork
    from inference.nnunet.device.fallback import Placement
    from inference.nnunet.device.restore import DeviceHead
    from inference.nnunet.device.source import DeviceGrid
    from inference.nnunet.prepared import Prepared
    from inference.nnunet.record import RunRecord

    HostPart = Callable[[int, OpenPart | None, NDArray[np.uint8], Callable[[int], None]], None]

_T = TypeVar("_T")
_LARGEST_BATCH = 4
"""Two windows of 128 voxels cubed already fill a GPU; more of them only need more memory."""
_FEATURE_MAPS = 8
"""Full-resolution maps of a U-Net in memory at once: skip, upsampled, both concatenated, two results, workspace."""
_SHARE_FOR_BATCH = 0.5
_SHARE_FOR_WORK = 0.125
"""Share of the free memory for chunks of resampling and restoring."""
_WORK_BYTES_OF_HOST = 256 << 20
_LARGEST_WORK_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """How to use the device.

    ``batch``: the most windows at a time; None: as many as fit, up to 4. ``captured``: launch the network's kernels as
    one CUDA graph, which pays off for small windows. ``compiled``: use torch.compile if triton is installed.
    ``work_bytes`` limits the chunks of resampling and restoring; None: an eighth of the free memory.
    """

    batch: int | None = None
    captured: bool = False
    compiled: bool = False
    work_bytes: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A volume that is being segmented."""

    volume: DeviceVolume
    record: RunRecord
    queued: Queued
    on_host: HostPart


class DeviceRun:
    """Runs a model on one device, from HU to labels, except for steps that do not fit there.

    Args:
        package: the model.
        options: of the engine; only ``parity`` and ``body_crop`` are used here.
        opened: loads a part onto the device; its networks are :class:`TensorNetwork`.
        device: CUDA; the CPU works too, to test every step.
        settings: batches, chunks and how kernels are launched.
    """

    def __init__(
        self,
        package: ModelPackage,
        options: EngineOptions,
        opened: Callable[[Part], OpenPart],
        *,
        device: torch.device,
        settings: DeviceSettings = DeviceSettings(),
    ) -> None:
        self._package = package
        self._options = options
        self._device = device
        self._settings = settings
        self._parts = ResidentParts(package.parts, device, lambda part: self._launched(opened(part)))

    def load(self) -> None:
        """Load the weights of all parts onto the device; if they do not fit now, each volume tries again.

        Raises:
            ModelPackageError: the weights do not fit the network of a part.
        """
        try:
            self._parts.load()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.release()

    def release(self) -> None:
        """Free the memory of the device; the next volume loads the weights again."""
        self._parts.release()
        self._free()

    def resident_bytes(self) -> int:
        """Device memory of the weights of all parts, which are kept in float32."""
        return sum(
            4 * len(part.weights) * sum(math.prod(shape) for shape in _weight_shapes(part))
            for part in self._package.parts
        )

    @torch.inference_mode()
    def labels(
        self, prepared: Prepared, record: RunRecord, on_host: HostPart, on_windows: Callable[[int, int], None]
    ) -> NDArray[np.uint8]:
        """Label every voxel of a checked volume, [z, y, x] on its own grid.

        Args:
            prepared: with grids if the host resampled the volume (nnU-Net's own resampling runs there), else without.
            record: receives what ran, for how long, and every fallback.
            on_host: segments one part (by number) with sums on the host and writes its labels [z, y, x] over those of
                earlier parts, using the networks on the device or, if given None, networks on the CPU.
                It calls its last argument with the number of finished windows.
            on_windows: called with the number of finished windows and of all windows.
        """
        queued = Queued(self._device, len(self._package.parts), on_windows)
        work = _Work(DeviceVolume(prepared, self._device), record, queued, on_host)
        fallback = MemoryFallback(self._settings.batch or self._batch())
        with self._arithmetic():
            for number in range(len(self._package.parts)):
                self._part(number, work, fallback)
            with record.timed("download"):
                labels = work.volume.labels_on_host()
        return labels

    def _part(self, number: int, work: _Work, fallback: MemoryFallback) -> None:
        """Segment one part wherever there is enough memory; a part that fails halfway is run again from the start."""
        name = f"part {self._package.parts[number].name}"
        while (failure := self._attempt(number, work, fallback.placement)) is not None:
            note = fallback.reduce(name, failure, leave_device=not work.volume.is_on_device)
            if note is None:
                raise MemoryError(f"{name} does not fit in memory, not even on the CPU: {failure}")
            work.record.note(note)
            if fallback.placement.place != "device":
                work.volume.leave_device()
            if fallback.placement.place == "cpu" or self._settings.captured:  # a graph keeps the memory of its batch
                self._parts.release()
            self._free()

    def _attempt(self, number: int, work: _Work, placement: Placement) -> str | None:
        """Run one part; the error's first line if memory ran out, else None."""
        try:
            if placement.place == "device":
                self._on_device(number, work, placement.batch)
            else:
                one = self._parts.get(number)[0] if placement.place == "host sums" else None
                work.queued.start(number)
                work.on_host(number, one, work.volume.labels_on_host(), work.queued.add)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # the error holds the frames that failed, and those hold tensors: keep only its text
            return reason_of(error)
        return None

    def _on_device(self, number: int, work: _Work, batch: int) -> None:
        part, record = self._package.parts[number], work.record
        with record.timed("prepare"):
            grid = work.volume.grid(number, self._package, self._options, self._work_bytes())
        with record.timed("load"):
            one, head = self._parts.get(number)
        with record.timed("inference"):
            windows = self._windows(part, grid)
            work.queued.start(number, windows.count)
            restorer = self._restorer(one, head, grid, work.volume)
            for first, values in self._slabs(one, grid.image(part), windows, batch, work.queued):
                restorer.accept(first, values)
        record.ran(one)

    def _windows(self, part: Part, grid: DeviceGrid) -> Windows:
        shape = [box.stop - box.start for box in grid.box]
        return Windows.of(
            [shape[axis] for axis in part.axes], part.patch_size, self._package.window_step, grid.needed(part)
        )

    def _slabs(
        self, one: OpenPart, image: torch.Tensor, windows: Windows, batch: int, queued: Queued
    ) -> Iterator[tuple[int, torch.Tensor]]:
        networks = cast("Sequence[TensorNetwork]", one.networks)
        if self._options.parity:
            return averaged_half_slabs(image, windows, networks, batch, queued)
        return averaged_slabs(image, windows, networks[0], batch, queued)

    def _restorer(self, one: OpenPart, head: DeviceHead, grid: DeviceGrid, volume: DeviceVolume) -> DeviceRestorer:
        axes = one.part.axes
        within_borders = self._package.resampling == "nnunet"
        labels, backwards = volume.labels_view(grid)
        interpolation: Interpolation = "smooth"
        if self._options.parity:
            interpolation = "linear" if within_borders else "nearest"
        return DeviceRestorer(
            labels.permute(axes),
            _in_order(backwards, axes),
            _in_order(grid.voxels_zyx.shape, axes),
            _in_order([box.start for box in grid.box], axes),
            _in_order([box.stop - box.start for box in grid.box], axes),
            one.label_by_channel,
            head,
            interpolation=interpolation,
            alignment="centres" if within_borders else "corners",
            thick_axis=volume.thick_axis(one.part) if interpolation == "linear" else None,
            working_bytes=self._work_bytes(),
        )

    def _launched(self, one: OpenPart) -> OpenPart:
        """The part with its networks launched as the settings say."""
        wrappers: list[Callable[[TensorNetwork], TensorNetwork]] = []
        if self._settings.compiled and can_compile(self._device):
            wrappers.append(CompiledNetwork)
        if self._settings.captured and self._device.type == "cuda":
            wrappers.append(CapturedNetwork)
        networks = cast("tuple[TensorNetwork, ...]", one.networks)
        for wrapper in wrappers:
            networks = tuple(wrapper(network) for network in networks)
        return replace(one, networks=networks)

    def _batch(self) -> int:
        """How many windows are likely to fit; too high a guess costs a fallback."""
        if self._device.type != "cuda":
            return _LARGEST_BATCH
        number = 4 if self._options.parity or self._options.precision == "float32" else 2
        window = max(
            number * _FEATURE_MAPS * part.architecture.features_per_stage[0] * math.prod(part.patch_size)
            for part in self._package.parts
        )
        return max(1, min(_LARGEST_BATCH, int(_free_bytes(self._device) * _SHARE_FOR_BATCH) // window))

    def _work_bytes(self) -> int:
        if self._settings.work_bytes is not None:
            return self._settings.work_bytes
        if self._device.type != "cuda":
            return _WORK_BYTES_OF_HOST
        return min(_LARGEST_WORK_BYTES, int(_free_bytes(self._device) * _SHARE_FOR_WORK))

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        """Make float32 mean float32, not TF32, and let cuDNN measure which of its algorithms is fastest."""
        if self._device.type != "cuda":
            yield
            return
        with (
            torch.cuda.device(self._device),
            torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False),
        ):
            yield

    def _free(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _weight_shapes(part: Part) -> Iterator[tuple[int, ...]]:
    yield from shape_by_name(part.architecture, len(part.names_by_channel) + 1).values()


def _free_bytes(device: torch.device) -> int:
    """Free memory of the device, including what torch has reserved but does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _in_order(values: Sequence[_T], axes: Sequence[int]) -> tuple[_T, _T, _T]:
    z, y, x = (values[axis] for axis in axes)
    return z, y, x
