"""A loaded nnU-Net model: HU in, labels on the same grid out."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from inference.errors import SegmentationRefusedError
from inference.nnunet.contract import EngineOptions, OpenPart
from inference.nnunet.failures import NotFiniteError, is_out_of_memory, reason_of
from inference.nnunet.host.prepare import prepare
from inference.nnunet.host.run import HostRun
from inference.nnunet.limits import check
from inference.nnunet.machine import effective_device, effective_precision, usable_cores
from inference.nnunet.networks.mirrored import MirroredNetwork
from inference.nnunet.networks.open_networks import open_networks
from inference.nnunet.record import RunRecord
from inference.types import RunNote, Segmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from inference.models.package import ModelPackage, Part
    from inference.nnunet.contract import WindowNetwork
    from inference.nnunet.device.run import DeviceRun
    from inference.nnunet.prepared import Prepared
    from inference.types import ModelIdentity, Volume

    Progress = Callable[[float, str], None]
    OnWindows = Callable[[int, int], None]

_PREPARED_SHARE = 0.05
"""Share of the work before the first window in the progress display."""
_WIDER: dict[str, Literal["bfloat16", "float32"]] = {"float16": "bfloat16", "bfloat16": "float32"}
"""Where a network overflows, the precision with a wider range of numbers that it runs in again."""


class NnunetSegmenter:
    """An nnU-Net v2 model, loaded and ready to run; a :class:`inference.types.Segmenter`.

    ``prepare`` may run for the next volume in another thread while ``infer`` runs.

    Raises:
        ModelPackageError: the weights do not fit the networks of the package.
        InferenceError: the device or backend that ``options`` ask for is not available.
    """

    def __init__(self, package: ModelPackage, options: EngineOptions | None = None) -> None:
        self._package = package
        self._options = options or EngineOptions()
        self._host = HostRun(package, self._options, self._options.threads or usable_cores())
        self._fallback: RunNote | None = None
        self._device = self._device_run() if effective_device(self._options) == "cuda" else None
        self._parts: dict[int, OpenPart] = {}
        self._in_wider_precision: NnunetSegmenter | None = None
        if self._device is None:
            self._open()

    @property
    def identity(self) -> ModelIdentity:
        """Which model this is."""
        return self._package.identity

    @property
    def names_by_label(self) -> Mapping[int, str]:
        """Every label that the model can assign."""
        return self._package.names_by_label

    def segment(self, volume: Volume, progress: Progress) -> Segmentation:
        """Label every voxel of ``volume``.

        Raises:
            SegmentationRefusedError: the volume is too small, too large, constant, not finite or not orthogonal.
        """
        return self.infer(self.prepare(volume, progress), progress)

    def check(self, volume: Volume) -> None:
        """Raise SegmentationRefusedError for a volume that the model can't segment."""
        check(volume, self._package, self._options)

    def prepare(self, volume: Volume, progress: Progress, *, checked: bool = False) -> Prepared:
        """Check ``volume``, unless it is part of a volume that was ``checked``, and resample it; runs no network.

        Raises:
            SegmentationRefusedError: the volume is too small, too large, constant, not finite or not orthogonal.
        """
        start = time.perf_counter()
        progress(0.0, "resample")
        if not checked:
            self.check(volume)
        if not self._options.parity:  # TotalSegmentator sees padding as it is stored
            volume = volume.with_air_for_padding()
        # a device resamples on its own, except for nnU-Net's cubic resampling
        resampled = self._device is None or self._package.resampling == "nnunet"
        prepared = prepare(volume, self._package, self._options, resampled=resampled)
        return replace(prepared, seconds=time.perf_counter() - start)

    def infer(self, prepared: Prepared, progress: Progress) -> Segmentation:
        """Label every voxel of a prepared volume; the run's report has the stages prepare, inference and restore.

        A volume on which the networks overflow is segmented again in bfloat16 and then in float32. The next one starts
        with the precision of the options again, so that its labels do not depend on what was segmented before.

        Raises:
            SegmentationRefusedError: the networks overflow even in float32.
            MemoryError: more was needed than there is now; another time it may pass.
        """
        record = RunRecord({"prepare": prepared.seconds})

        def on_windows(done: int, count: int) -> None:
            progress(_PREPARED_SHARE + (1 - _PREPARED_SHARE) * done / count, "inference")

        progress(_PREPARED_SHARE, "inference")
        labels = self._labels(prepared, record, on_windows)
        progress(1.0, "done")
        return Segmentation(labels, prepared.volume.geometry, self.names_by_label, self.identity, record.report())

    def _labels(self, prepared: Prepared, record: RunRecord, on_windows: OnWindows) -> NDArray[np.uint8]:
        try:
            if self._device is not None:
                return self._on_device(self._device, prepared, record, on_windows)
            return self._on_cpu(prepared, record, on_windows)
        except NotFiniteError as error:
            overflowed = effective_precision(self._options)
            wider = _WIDER.get(overflowed)
            if wider is None:
                raise SegmentationRefusedError(self._overflowed_in_float32(error)) from error
        text = f"the network overflowed in {overflowed}; the volume was segmented again in {wider}"
        record.note(RunNote(text, changes_answer=True))
        record.begin_again()
        self._release()
        if self._in_wider_precision is None:
            options = replace(self._options, precision=wider)
            self._in_wider_precision = NnunetSegmenter(self._package, options)
        again = self._in_wider_precision
        try:
            return again._labels(prepared, record, on_windows)  # noqa: SLF001 - another one of these
        finally:
            again._release()  # noqa: SLF001 - as above

    def _release(self) -> None:
        """Give back the memory of the device, which holds the weights in one precision at a time."""
        if self._device is not None:
            self._device.release()

    def _overflowed_in_float32(self, error: NotFiniteError) -> str:
        if self._options.parity:
            return f"{error}, or overflows when it is summed in half precision, as in parity; nnU-Net stops there, too"
        return f"{error} even in float32; the weights are not usable on this volume"

    def _device_run(self) -> DeviceRun:
        import torch  # noqa: PLC0415 - not needed on a CPU

        from inference.nnunet.device.run import DeviceRun  # noqa: PLC0415 - see above

        run = DeviceRun(self._package, self._options, self.open_part, device=torch.device("cuda"))
        run.load()
        return run

    def _on_device(
        self, device: DeviceRun, prepared: Prepared, record: RunRecord, on_windows: OnWindows
    ) -> NDArray[np.uint8]:
        on_host = prepared

        def label_on_host(
            number: int, opened: OpenPart | None, labels: NDArray[np.uint8], on_window: Callable[[int], None]
        ) -> None:
            """Segment one part that did not fit on the device."""
            nonlocal on_host
            if not on_host.grids:
                with record.timed("prepare"):
                    on_host = prepare(prepared.volume, self._package, self._options)
            if opened is None:
                opened = self._parts.setdefault(number, self.open_part(self._package.parts[number], device="cpu"))
            self._host.label(number, opened, on_host, labels, record, lambda: on_window(1))

        return device.labels(prepared, record, label_on_host, on_windows)

    def _on_cpu(self, prepared: Prepared, record: RunRecord, on_windows: OnWindows) -> NDArray[np.uint8]:
        try:
            return self._host.labels(prepared, self._parts, record, on_windows)
        except RuntimeError as error:
            _raise_if_out_of_memory(error)
            if not self._runs_openvino() or isinstance(error, NotImplementedError | RecursionError):
                raise
            self._fall_back(error)
        record.begin_again()
        try:
            return self._host.labels(prepared, self._parts, record, on_windows)
        except RuntimeError as error:
            _raise_if_out_of_memory(error)
            raise

    def _runs_openvino(self) -> bool:
        networks = (network for one in self._parts.values() for network in one.networks)
        return any(network.runtime.backend.startswith("OpenVINO") for network in networks)

    def _fall_back(self, error: RuntimeError) -> None:
        """Switch from OpenVINO, which failed, to torch for the life of this segmenter."""
        self._fallback = RunNote(f"OpenVINO failed, continued with torch: {reason_of(error)}", changes_answer=True)
        self._options = replace(self._options, backend="torch", device="cpu")
        self._parts = {}
        self._open()

    def _open(self) -> None:
        for number, part in enumerate(self._package.parts):
            self._parts[number] = self.open_part(part)

    def open_part(self, part: Part, device: Literal["auto", "cpu", "cuda"] | None = None) -> OpenPart:
        """Load the networks of ``part`` on ``device``, by default the device of the options."""
        options = self._options if device is None else replace(self._options, device=device)
        label_by_name = {name: label for label, name in self.names_by_label.items()}
        labels = np.zeros(len(part.names_by_channel) + 1, np.uint8)
        for channel, name in part.names_by_channel.items():
            labels[channel] = label_by_name.get(name, 0)  # the package knows every name, but does not report all
        notes = [] if self._fallback is None else [self._fallback]
        if not options.parity:
            opened = [open_networks(part, options, output="auto", note=notes.append)]
        else:
            folds = [replace(part, weights=(path,)) for path in part.weights]
            opened = [open_networks(fold, options, output="logits", note=notes.append) for fold in folds]
        self._package.check_unchanged(part)  # after a backend failed, the digests were compared long ago
        networks: tuple[WindowNetwork, ...] = tuple(network for network, _ in opened)
        if options.mirroring and part.mirroring_axes:
            networks = tuple(MirroredNetwork(network, part.mirroring_axes) for network in networks)
        return OpenPart(part, networks, opened[0][1], labels, tuple(notes))


def _raise_if_out_of_memory(error: RuntimeError) -> None:
    """Another backend would need as much memory; later there may be enough."""
    if is_out_of_memory(error) or "bad_alloc" in str(error):
        raise MemoryError(reason_of(error)) from error
