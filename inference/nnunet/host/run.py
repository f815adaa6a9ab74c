"""Runs the parts of a model one after the other, with everything except the network on the CPU."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from inference.nnunet.host.averaging import averaged, averaged_half
from inference.nnunet.host.linear import LinearRestorer
from inference.nnunet.host.restore import Restorer
from inference.nnunet.windows import Windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from inference.models.package import ModelPackage, Part
    from inference.nnunet.contract import EngineOptions, OpenPart
    from inference.nnunet.prepared import Grid, Prepared
    from inference.nnunet.record import RunRecord


class HostRun:
    """A model whose windows are cut, averaged and restored on the CPU; its networks may run anywhere.

    Args:
        package: the model.
        options: of the engine; only ``parity`` is used here.
        threads: number of threads, apart from those of the network.
    """

    def __init__(self, package: ModelPackage, options: EngineOptions, threads: int) -> None:
        self._package = package
        self._options = options
        self._threads = threads

    def labels(
        self,
        prepared: Prepared,
        opened: Mapping[int, OpenPart],
        record: RunRecord,
        on_windows: Callable[[int, int], None],
    ) -> NDArray[np.uint8]:
        """Label every voxel of a prepared volume, [z, y, x] on its own grid.

        Args:
            prepared: with a grid for each part.
            opened: every part, by number.
            record: receives what ran and for how long.
            on_windows: called with the number of finished windows and of all windows.
        """
        labels = np.zeros(prepared.volume.geometry.shape_zyx, np.uint8)
        parts = self._package.parts
        count = sum(self._windows(part, grid).count for part, grid in zip(parts, prepared.grids, strict=True))
        done = itertools.count(1)
        for number in range(len(parts)):
            self.label(number, opened[number], prepared, labels, record, lambda: on_windows(next(done), count))
        return labels

    def label(
        self,
        number: int,
        one: OpenPart,
        prepared: Prepared,
        labels: NDArray[np.uint8],
        record: RunRecord,
        on_window: Callable[[], None],
    ) -> None:
        """Write the labels of part ``number`` over those of earlier parts in ``labels`` [z, y, x]."""
        grid = prepared.grids[number]
        restorer = self._restorer(one, grid, prepared, labels)
        slabs = self._slabs(one, grid.image(one.part), self._windows(one.part, grid), on_window)
        for first, values in record.timed_items("inference", slabs):
            with record.timed("restore"):
                restorer.accept(first, values)
        for network in one.networks:  # of several parts, only the running one may hold its activations
            network.rest()
        record.ran(one)

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

    def _restorer(
        self, one: OpenPart, grid: Grid, prepared: Prepared, labels: NDArray[np.uint8]
    ) -> Restorer | LinearRestorer:
        axes = one.part.axes
        view = prepared.canonical.view(labels)[grid.source_box].transpose(axes)
        shape = _in_order(grid.voxels_zyx.shape, axes)
        within_borders = self._package.resampling == "nnunet"
        if within_borders and self._options.parity:
            return LinearRestorer(
                view,
                shape,
                one.label_by_channel,
                one.head,
                thick_axis=prepared.thick_axis(one.part),
                threads=self._threads,
            )
        return Restorer(
            view,
            shape,
            _in_order([box.start for box in grid.box], axes),
            _in_order([box.stop - box.start for box in grid.box], axes),
            one.label_by_channel,
            one.head,
            interpolation="nearest" if self._options.parity else "smooth",
            alignment="centres" if within_borders else "corners",
            threads=self._threads,
        )


def _in_order(values: Sequence[int], axes: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = (values[axis] for axis in axes)
    return z, y, x
