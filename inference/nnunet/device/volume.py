"""One volume and its label map on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from inference.nnunet.device.source import DeviceGrid, grid_on_device, uploaded
from inference.nnunet.prepared import spacing_zyx_mm

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from inference.models.package import ModelPackage, Part
    from inference.nnunet.contract import EngineOptions
    from inference.nnunet.prepared import Prepared


class DeviceVolume:
    """One volume and its label map, kept on the device as long as they fit."""

    def __init__(self, prepared: Prepared, device: torch.device) -> None:
        self._prepared = prepared
        self._device = device
        self._shape = prepared.volume.geometry.shape_zyx
        self._source: torch.Tensor | None = None
        self._grids: dict[object, DeviceGrid] = {}
        self._labels: torch.Tensor | None = None
        self._host_labels: NDArray[np.uint8] | None = None

    @property
    def is_on_device(self) -> bool:
        """Whether the volume, a grid and the label map fit on the device."""
        return bool(self._grids) and self._labels is not None

    def thick_axis(self, part: Part) -> int | None:
        """Of the axes of ``part``, the one along which nnU-Net takes logits from the nearest plane."""
        return self._prepared.thick_axis(part)

    def grid(self, number: int, package: ModelPackage, options: EngineOptions, working_bytes: int) -> DeviceGrid:
        """What part ``number`` looks at; parts with the same spacing share it."""
        if self._labels is None:
            self._labels = torch.zeros(self._shape, dtype=torch.uint8, device=self._device)
        if self._prepared.grids:
            prepared = self._prepared.grids[number]
            return self._kept(id(prepared), lambda: DeviceGrid.of(prepared, self._device))
        wanted = spacing_zyx_mm(package.parts[number])
        return self._kept(wanted, lambda: self._resampled(wanted, package, options, working_bytes))

    def _kept(self, key: object, make: Callable[[], DeviceGrid]) -> DeviceGrid:
        if key not in self._grids:
            self._grids[key] = make()
        return self._grids[key]

    def _resampled(
        self, wanted: tuple[float, float, float], package: ModelPackage, options: EngineOptions, working_bytes: int
    ) -> DeviceGrid:
        volume, canonical = self._prepared.volume, self._prepared.canonical
        if self._source is None:
            self._source = uploaded(volume.voxels_zyx, self._device)
        return grid_on_device(
            self._source,
            canonical,
            canonical.spacing_mm(volume.geometry),
            wanted,
            package.parts,
            crops_to_body=options.body_crop and not options.parity,
            working_bytes=working_bytes,
        )

    def labels_view(self, grid: DeviceGrid) -> tuple[torch.Tensor, tuple[bool, bool, bool]]:
        """The part of the label map that ``grid`` spans, in canonical axis order, and which axes run backwards."""
        if self._labels is None:
            raise RuntimeError("the label map has left the device")
        canonical = self._prepared.canonical
        view = self._labels.permute(canonical.source_axes)
        box = [
            slice(n - span.stop, n - span.start) if backwards else span
            for n, span, backwards in zip(view.shape, grid.source_box, canonical.reversed_axes, strict=True)
        ]
        return view[tuple(box)], canonical.reversed_axes

    def leave_device(self) -> None:
        """Move the labels so far to the host and free everything on the device."""
        self.labels_on_host()
        self._labels = self._source = None
        self._grids.clear()

    def labels_on_host(self) -> NDArray[np.uint8]:
        """The labels so far; always the same array once they have left the device."""
        if self._host_labels is not None:
            return self._host_labels
        labels: NDArray[np.uint8] = (
            np.zeros(self._shape, np.uint8) if self._labels is None else self._labels.cpu().numpy()
        )
        self._host_labels = labels
        return labels
