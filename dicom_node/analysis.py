"""The steps of an analysis: read, reconstruct, infer, return to the source grid, measure, encode, keep.

Only :func:`analyse` defines this order. A job of the node, an input of ``dicom-node segment`` and a call of
:mod:`dicom_node.api` are each a :class:`Case`, which supplies what differs between them: where the images are, which
process infers, when a case may be encoded, and where the results go. The steps themselves are the functions below.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dicom_node.errors import NotEligible, PixelDataInvalid, SegmentationImpossible
from dicom_node.percentiles import read_percentiles
from dicom_node.reconstruct import labels_on_source, reconstruct
from dicom_node.reconstruct.scale import implausible_scale, normalised_scale, note_on_missing_hu
from dicom_node.types import Series
from inference.errors import SegmentationRefusedError
from inference.measure import measure, without_padding
from inference.padding import find_padding
from inference.types import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from dicom_node.types import EncodedResult, Reconstruction, ResultContext, ResultRequest
    from inference.types import Measurements, MinimumExtent, Segmentation, Volume


@dataclass(frozen=True, slots=True, eq=False)
class Ct:
    """A CT in memory: ``volume`` is the input of a model, ``source`` defines the grid of the results.

    Both are the same object unless the gantry was tilted. ``reconstruction`` links the planes to their source images;
    None for a volume that does not come from DICOM.
    """

    volume: Volume
    source: Volume
    reconstruction: Reconstruction | None = None
    notes: tuple[str, ...] = ()
    """What a reader should know about a volume that does not come from DICOM."""


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """What the model found in ``ct``: labels on the source grid, and their measurements."""

    ct: Ct
    segmentation: Segmentation
    measurements: Measurements

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know about the images, and about a run that did not go as planned."""
        of_run = self.segmentation.run.notes if self.segmentation.run else ()
        return (*self.notes_on_images, *(note.text for note in of_run))

    @property
    def notes_on_images(self) -> tuple[str, ...]:
        """What a reader should know about the images."""
        return self.ct.reconstruction.notes if self.ct.reconstruction else self.ct.notes


class Case(Protocol):
    """One CT as :func:`analyse` sees it."""

    @property
    def model(self) -> str:
        """The name of the model, for messages."""
        ...

    @property
    def minimum(self) -> MinimumExtent:
        """The smallest volume that the model accepts."""
        ...

    @property
    def structures(self) -> Sequence[str]:
        """The structures to keep of those that the model finds; empty: all."""
        ...

    @property
    def unchecked_hu(self) -> bool:
        """Whether the values of a volume that does not come from DICOM are taken for Hounsfield units unchecked."""
        ...

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Record the duration of the block as stage ``name``."""
        ...

    def read(self) -> Series | Volume:
        """The images, their pixel data still on disk; or a volume from a format without images."""
        ...

    def reconstruct(self, series: Series) -> Reconstruction:
        """The volume of what :meth:`read` gave."""
        ...

    def infer(self, volume: Volume) -> Segmentation:
        """The labels of ``volume``, on its grid."""
        ...

    def requests(self) -> Mapping[str, ResultRequest] | None:
        """The results for each destination (empty: the default objects); None: no DICOM objects."""
        ...

    def encoding(self) -> AbstractContextManager[object]:
        """Wait until this case may be measured and encoded, then reserve that for the duration of the block."""
        ...

    def context(self) -> ResultContext:
        """What the results state besides the findings."""
        ...

    def keep(self, findings: Findings, results: Iterator[EncodedResult]) -> None:
        """Store everything; each of ``results`` is encoded when it is requested."""
        ...


def analyse(case: Case) -> None:
    """Take one CT from its files to its results.

    Raises:
        SeriesRejected: the images do not form a CT volume, or the volume is too small for the model.
        SegmentationImpossible: the model refuses the volume, or its labels are inconsistent.
        EncodingError: a result could not be built, or differed when read back.
        ConfigurationError: a file of percentiles that is requested can't be used any more.
        DicomNodeError: whatever the case raises.
    """
    with case.stage("read"):
        images = case.read()
    with case.stage("reconstruct"):
        ct = reconstructed(images, case.reconstruct, unchecked_hu=case.unchecked_hu)
        refuse_too_small(ct, case.minimum)
    with _translated(case.model):
        labels = case.infer(ct.volume)
    requests = case.requests()
    with case.encoding():
        with case.stage("measure"), _translated(case.model):
            with_shape = any(request.shape for request in (requests or {}).values())
            findings = measured(ct, on_source_grid(ct, labels, case.structures), with_shape=with_shape)
        case.keep(findings, _encoded(case, findings, requests))


def reconstructed(
    images: Series | Volume, how: Callable[[Series], Reconstruction] = reconstruct, *, unchecked_hu: bool = False
) -> Ct:
    """The volume of ``images``; of a volume from elsewhere, the padding is looked for and the scale is checked.

    ``unchecked_hu``: the values of such a volume are taken for Hounsfield units whatever they are; a series states it
    itself.

    Raises:
        SeriesRejected: see :func:`dicom_node.reconstruct.reconstruct`; or the values of the volume can't be Hounsfield
            units.
        StoreUnavailable: a file is missing or the disk fails.
    """
    if isinstance(images, Series):
        reconstruction = how(images)
        return Ct(reconstruction.volume, reconstruction.source, reconstruction)
    if images.padding is None and (padding := find_padding(images.voxels_zyx)) is not None:
        images = replace(images, padding=padding)
    implausible = normalised_scale(images) or implausible_scale(images)
    if implausible is None:
        return Ct(images, images, notes=tuple(filter(None, [note_on_missing_hu(images)])))
    if not unchecked_hu:
        raise PixelDataInvalid(f"the values are not Hounsfield units: {implausible}")
    return Ct(images, images, notes=(f"taken as Hounsfield units because an option says so, though {implausible}",))


def refuse_too_small(ct: Ct, minimum: MinimumExtent) -> None:
    """Check that ``ct`` is large enough for the model.

    Raises:
        NotEligible: it has fewer slices than ``minimum``, or a smaller extent along an axis.
    """
    refusal = minimum.refusal(ct.volume.geometry)
    if refusal is not None:
        raise NotEligible(refusal)


def on_source_grid(ct: Ct, labels: Segmentation, structures: Sequence[str] = ()) -> Segmentation:
    """The ``labels`` of the volume, plane by plane on the source images; only ``structures``, if any are given.

    Padding has no label, whatever the model says of it.

    Raises:
        InvalidValueError: the labels have a different grid than the volume.
    """
    if not labels.geometry.same_grid(ct.volume.geometry):
        raise InvalidValueError(
            f"the labels have grid {labels.geometry.shape_zyx}, the volume has {ct.volume.geometry.shape_zyx}"
        )
    labels_zyx, names = labels.labels_zyx, labels.names_by_label
    if ct.reconstruction is not None:
        labels_zyx = labels_on_source(ct.reconstruction, labels_zyx)
    labels_zyx = without_padding(ct.source, labels_zyx)
    if structures:
        names = {label: name for label, name in names.items() if name in structures}
        kept = np.zeros(256, np.uint8)
        kept[list(names)] = list(names)
        labels_zyx = kept[labels_zyx]
    if labels_zyx is labels.labels_zyx:
        return labels
    return replace(labels, labels_zyx=labels_zyx, geometry=ct.source.geometry, names_by_label=names)


def measured(ct: Ct, segmentation: Segmentation, *, with_shape: bool) -> Findings:
    """The findings of ``segmentation``, which must be on the source grid.

    Raises:
        InvalidValueError: see :func:`inference.measure.measure`.
    """
    return Findings(ct, segmentation, measure(ct.source, segmentation, with_shape=with_shape))


def _encoded(case: Case, findings: Findings, requests: Mapping[str, ResultRequest] | None) -> Iterator[EncodedResult]:
    reconstruction = findings.ct.reconstruction
    if reconstruction is None or requests is None:
        return
    from dicom_node.encode.run import encode_in_turn  # noqa: PLC0415 - loads highdicom, for DICOM results only

    files = {request.percentiles for request in requests.values() if request.percentiles}
    percentiles = {file: read_percentiles(Path(file)) for file in sorted(files)}
    yield from encode_in_turn(
        reconstruction, findings.segmentation, findings.measurements, case.context(), requests, percentiles
    )


@contextmanager
def _translated(model: str) -> Iterator[None]:
    """Translate errors of ``inference``: the model refuses the volume, or is to blame for inconsistent labels."""
    try:
        yield
    except SegmentationRefusedError as error:
        raise SegmentationImpossible(f"model {model!r}: {error}") from error
    except InvalidValueError as error:
        raise SegmentationImpossible(f"model {model!r} returned an invalid label map: {error}") from error
