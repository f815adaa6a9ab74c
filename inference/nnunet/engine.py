"""A loaded nnU-Net model: HU in, labels on the same grid out."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from inference.nnunet.contract import EngineOptions, OpenPart
from inference.nnunet.failures import first_line, is_out_of_memory
from inference.nnunet.host.averaging import averaged, averaged_half
from inference.nnunet.host.prepare import prepare
from inference.nnunet.host.restore import Restorer
from inference.nnunet.limits import check
from inference.nnunet.machine import effective_device, usable_cores
from inference.nnunet.networks.open_networks import open_networks
from inference.nnunet.windows import Windows
from inference.types import Segmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from inference.models.package import ModelPackage, Part
    from inference.nnunet.device.run import DeviceRun
    from inference.nnunet.prepared import Grid, Prepared
    from inference.types import ModelIdentity, Volume

    Progress = Callable[[float, str], None]
    OnWindows = Callable[[int, int], None]

_PREPARED_SHARE = 0.05
"""Part of the work, for the progress display, that is done before the first window."""


class NnunetSegmenter:
    """An nnU-Net v2 model, loaded and ready; a :class:`inference.types.Segmenter`.

    ``prepare`` of the next volume may run in another thread than ``infer`` of the present one.

    Raises:
        ModelPackageError: the weights are not those of the package's networks.
        InferenceError: the device or backend that ``options`` ask for is not here.
    """

    def __init__(self, package: ModelPackage, options: EngineOptions | None = None) -> None:
        self._package = package
        self._options = options or EngineOptions()
        self._threads = self._options.threads or usable_cores()
        self._seconds: dict[str, float] = defaultdict(float)
        self._notes: list[str] = []
        self._backends: dict[str, None] = {}
        self._prepared: Prepared | None = None
        self._device = self._device_run() if effective_device(self._options) == "cuda" else None
        self._parts: dict[int, OpenPart] = {}
        if self._device is None:
            self._open()

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is."""
        return self._package.identity

    @property
    def names_by_label(self) -> Mapping[int, str]:
        """Every label the model can give."""
        return self._package.names_by_label

    @property
    def stage_seconds(self) -> Mapping[str, float]:
        """Wall seconds of the stages of the last volume: prepare, inference, restore; a device adds its own."""
        on_device = self._device.stage_seconds if self._device else {}
        return {**self._seconds, **on_device}

    @property
    def notes(self) -> Sequence[str]:
        """What went otherwise than planned, such as a fallback to another backend or to smaller batches."""
        return (*self._notes, *(self._device.notes if self._device else ()))

    @property
    def description(self) -> str:
        """Backend, version, device and precision of the networks, as reports print them."""
        return ", ".join(self._backends)

    def segment(self, volume: Volume, progress: Progress) -> Segmentation:
        """Label every voxel of ``volume``.

        Raises:
            SegmentationRefusedError: the volume is too small, too large, constant, not finite or not orthogonal.
        """
        return self.infer(self.prepare(volume, progress), progress)

    def check(self, volume: Volume) -> None:
        """Raises SegmentationRefusedError for a volume that the model can't segment."""
        check(volume, self._package, self._options)

    def prepare(self, volume: Volume, progress: Progress, *, checked: bool = False) -> Prepared:
        """Check ``volume``, unless it is part of one that was ``checked``, and resample it, without the network.

        Raises:
            SegmentationRefusedError: the volume is too small, too large, constant, not finite or not orthogonal.
        """
        start = time.perf_counter()
        progress(0.0, "resample")
        if not checked:
            self.check(volume)
        # a device resamples itself, but for nnU-Net's own cubic way
        resampled = self._device is None or self._package.resampling == "nnunet"
        prepared = prepare(volume, self._package, self._options, resampled=resampled)
        return replace(prepared, seconds=time.perf_counter() - start)

    def infer(self, prepared: Prepared, progress: Progress) -> Segmentation:
        """Label every voxel of a prepared volume.

        Raises:
            MemoryError: more was needed than there is now; another time it may pass.
        """
        self._seconds = defaultdict(float, prepare=prepared.seconds)

        def on_windows(done: int, count: int) -> None:
            progress(_PREPARED_SHARE + (1 - _PREPARED_SHARE) * done / count, "inference")

        progress(_PREPARED_SHARE, "inference")
        labels = self._on_device(prepared, on_windows) if self._device else self._on_cpu(prepared, on_windows)
        progress(1.0, "done")
        return Segmentation(labels, prepared.volume.geometry, self.names_by_label, self.identity)

    def _device_run(self) -> DeviceRun:
        import torch  # noqa: PLC0415 - a CPU does without

        from inference.nnunet.device.run import DeviceRun  # noqa: PLC0415 - see above

        device = torch.device("cuda")
        run = DeviceRun(self._package, self._options, self.open_part, self._on_host, device=device)
        run.load()
        return run

    def _on_device(self, prepared: Prepared, on_windows: OnWindows) -> NDArray[np.uint8]:
        assert self._device is not None
        self._prepared = prepared
        try:
            return self._device.labels(prepared, on_windows)
        finally:
            self._prepared = None

    def _on_host(
        self, number: int, opened: OpenPart | None, labels: NDArray[np.uint8], on_windows: Callable[[int], None]
    ) -> None:
        """One part of the volume that the device has at hand: what did not fit there."""
        assert self._prepared is not None
        if not self._prepared.grids:
            self._prepared = prepare(self._prepared.volume, self._package, self._options)
        if opened is None:
            opened = self._parts.setdefault(number, self.open_part(self._package.parts[number], device="cpu"))
        self._label(opened, self._prepared, number, labels, lambda: on_windows(1))

    def _on_cpu(self, prepared: Prepared, on_windows: OnWindows) -> NDArray[np.uint8]:
        try:
            return self._labels(prepared, on_windows)
        except RuntimeError as error:
            _raise_if_out_of_memory(error)
            if "OpenVINO" not in self.description or isinstance(error, NotImplementedError | RecursionError):
                raise
            self._fall_back(error)
        try:
            return self._labels(prepared, on_windows)
        except RuntimeError as error:
            _raise_if_out_of_memory(error)
            raise

    def _fall_back(self, error: RuntimeError) -> None:
        """From OpenVINO, once it failed, to torch for the life of this segmenter."""
        self._note(f"OpenVINO failed and torch took over: {first_line(error)}")
        self._options = replace(self._options, backend="torch", device="cpu")
        self._parts = {}
        self._backends = {}
        self._open()

    def _note(self, sentence: str) -> None:
        if sentence not in self._notes:
            self._notes.append(sentence)

    def _open(self) -> None:
        for number, part in enumerate(self._package.parts):
            self._parts[number] = self.open_part(part)

    def open_part(self, part: Part, device: Literal["auto", "cpu", "cuda"] | None = None) -> OpenPart:
        """Load the networks of ``part``, on another device than that of the options where one is named."""
        options = self._options if device is None else replace(self._options, device=device)
        label_by_name = {name: label for label, name in self.names_by_label.items()}
        labels = np.zeros(len(part.names_by_channel) + 1, np.uint8)
        for channel, name in part.names_by_channel.items():
            labels[channel] = label_by_name.get(name, 0)  # the package knows every name, but not all are reported
        if not options.parity:
            opened = [open_networks(part, options, output="auto", note=self._note)]
        else:
            folds = [replace(part, weights=(path,)) for path in part.weights]
            opened = [open_networks(fold, options, output="logits", note=self._note) for fold in folds]
        self._package.check_unchanged(part)  # long after the digests were compared, where a backend failed
        networks = tuple(network for network, _ in opened)
        self._backends |= dict.fromkeys(network.description for network in networks)
        return OpenPart(part, networks, opened[0][1], labels)

    def _labels(self, prepared: Prepared, on_windows: OnWindows) -> NDArray[np.uint8]:
        labels = np.zeros(prepared.volume.geometry.shape_zyx, np.uint8)
        parts = self._package.parts
        count = sum(self._windows(part, grid).count for part, grid in zip(parts, prepared.grids, strict=True))
        windows_done = itertools.count(1)
        for number in range(len(parts)):
            self._label(self._parts[number], prepared, number, labels, lambda: on_windows(next(windows_done), count))
        return labels

    def _label(
        self, one: OpenPart, prepared: Prepared, number: int, labels: NDArray[np.uint8], on_window: Callable[[], None]
    ) -> None:
        """Write the labels of one part, the ``number``-th, over those of earlier ones."""
        grid = prepared.grids[number]
        restorer = self._restorer(one, grid, prepared.canonical.view(labels))
        slabs = self._slabs(one, grid.image(one.part), self._windows(one.part, grid), on_window)
        for first, values in self._timed("inference", slabs):
            with self._timing("restore"):
                restorer.accept(first, values)
        for network in one.networks:  # several parts: only the one at work may hold its activations
            network.rest()

    def _windows(self, part: Part, grid: Grid) -> Windows:
        shape = [box.stop - box.start for box in grid.box]
        return Windows.of(
            [shape[axis] for axis in part.axes], part.patch_size, self._package.window_step, grid.needed(part)
        )

    def _slabs(
        self, one: OpenPart, image: NDArray[np.float32], windows: Windows, on_window: Callable[[], None]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        if self._options.parity:
            return averaged_half(image, windows, one.networks, on_window)
        return averaged(image, windows, one.networks[0], on_window, self._threads)

    def _restorer(self, one: OpenPart, grid: Grid, view: NDArray[np.uint8]) -> Restorer:
        axes = one.part.axes
        within_borders = self._package.resampling == "nnunet"
        return Restorer(
            view[grid.source_box].transpose(axes),
            _in_order(grid.voxels_zyx.shape, axes),
            _in_order([box.start for box in grid.box], axes),
            _in_order([box.stop - box.start for box in grid.box], axes),
            one.label_by_channel,
            one.head,
            # nnU-Net itself interpolates logits where it resamples itself; TotalSegmentator takes the nearest label
            interpolation="nearest" if self._options.parity and not within_borders else "smooth",
            alignment="centres" if within_borders else "corners",
            threads=self._threads,
        )

    @contextmanager
    def _timing(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[stage] += time.perf_counter() - start

    def _timed(self, stage: str, items: Iterator[Any]) -> Iterator[Any]:
        """The items, the time that each takes to come counted to ``stage``."""
        while True:
            with self._timing(stage):
                item = next(items, None)
            if item is None:
                return
            yield item


def _raise_if_out_of_memory(error: RuntimeError) -> None:
    """Another backend would need as much; another time there may be enough."""
    if is_out_of_memory(error) or "bad_alloc" in str(error):
        raise MemoryError(first_line(error)) from error


def _in_order(values: Sequence[int], axes: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = (values[axis] for axis in axes)
    return z, y, x
