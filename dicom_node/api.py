"""The public Python API: segment a CT, and read results back into values.

The exports of this module are the stable API (docs/developers/releases.md); every other module is internal.
docs/developers/api.md has examples. Coordinates are those of DICOM: millimetres in LPS, arrays indexed
``[plane, row, column]``.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from dicom_node.analysis import analyse
from dicom_node.app.places import cache_folder_of_user, models_folder
from dicom_node.errors import (
    ConfigurationError,
    DicomNodeError,
    EncodingError,
    ResultUnreadable,
    SegmentationError,
    SeriesRejected,
)
from dicom_node.nifti import grid_of, write_labels
from dicom_node.percentiles import read_percentiles
from dicom_node.reconstruct import reconstruct
from dicom_node.results import (
    StoredSegment,
    StoredSegmentation,
    StoredStructure,
    StoredValue,
    read_report,
    read_segmentation,
)
from dicom_node.segment.case import Wanted
from dicom_node.segment.context import context_of
from dicom_node.segment.inputs import Opened, find_inputs
from dicom_node.segment.model import find_model, refuse_unknown
from dicom_node.types import EncodedResult, ResultKind, ResultRequest, SegmentationForm
from inference.errors import InferenceError
from inference.nnunet.contract import EngineOptions
from inference.types import (
    Geometry,
    InvalidValueError,
    ModelIdentity,
    RunNote,
    RunReport,
    ShapeMeasurement,
    StructureMeasurement,
    Volume,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import ArrayLike, NDArray

    from dicom_node.analysis import Findings
    from dicom_node.nifti import FileGrid
    from dicom_node.segment.inputs import Input
    from dicom_node.segment.model import Model
    from dicom_node.types import Reconstruction, ResultContext, Series
    from inference.types import MinimumExtent, Segmentation, Segmenter

__all__ = [
    "ConfigurationError",
    "DicomNodeError",
    "EncodedResult",
    "EncodingError",
    "Geometry",
    "InferenceError",
    "InvalidValueError",
    "ModelIdentity",
    "OpenModel",
    "Result",
    "ResultKind",
    "ResultRequest",
    "ResultUnreadable",
    "RunNote",
    "RunReport",
    "SegmentationError",
    "SegmentationForm",
    "SeriesRejected",
    "ShapeMeasurement",
    "StoredSegment",
    "StoredSegmentation",
    "StoredStructure",
    "StoredValue",
    "StructureMeasurement",
    "Volume",
    "open_model",
    "read_report",
    "read_segmentation",
    "segment",
    "volume",
]

_BEGINS_AT = {"read": 0.0, "reconstruct": 0.02, "segment": 0.05, "measure": 0.9, "encode": 0.95}
"""The fraction that ``progress`` gets at the start of each stage."""


@dataclass(frozen=True, slots=True, eq=False)
class OpenModel:
    """A model that stays loaded, for any number of CTs. Made by :func:`open_model`."""

    identity: ModelIdentity
    names_by_label: Mapping[int, str]
    """Every structure that the model can find."""
    _model: Model = field(repr=False)
    _segmenter: Segmenter = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The result for one CT.

    ``labels_zyx`` is uint8 on ``geometry``, the grid of the input images (for NIfTI, with the axes in DICOM's order);
    0 is background. ``structures`` are the measurements of all structures found, by ascending label. ``run`` describes
    the run, and ``notes`` tell a reader what to keep in mind. ``objects`` are the requested DICOM results;
    ``object.content`` is a whole file.
    """

    labels_zyx: NDArray[np.uint8]
    geometry: Geometry
    names_by_label: Mapping[int, str]
    structures: tuple[StructureMeasurement, ...]
    not_found: tuple[str, ...]
    model: ModelIdentity
    run: RunReport | None
    notes: tuple[str, ...]
    objects: tuple[EncodedResult, ...]
    _grid: FileGrid = field(repr=False)

    def voxels_of(self, name: str) -> NDArray[np.bool_]:
        """A mask of the structure ``name``, on the grid of ``labels_zyx``.

        Raises:
            KeyError: it is not a structure of the model.
        """
        label_of = {structure: label for label, structure in self.names_by_label.items()}
        inside: NDArray[np.bool_] = self.labels_zyx == label_of[name]
        return inside

    def write_labels(self, path: str | os.PathLike[str]) -> None:
        """Write the label map as NIfTI (``.nii.gz``); for a NIfTI input, with exactly the grid of that file."""
        description = f"{self.model.name} {self.model.version}; research use only"
        write_labels(Path(path), self.labels_zyx, self._grid, self.names_by_label, description)


def volume(voxels_zyx: ArrayLike, affine_lps: ArrayLike) -> Volume:
    """A CT from an array of Hounsfield units.

    ``affine_lps`` (4 x 4) maps the index (column, row, plane, 1) to LPS millimetres; planes ascend along the cross
    product of row and column direction. Integers that fit become int16, all other values float32.

    Raises:
        InvalidValueError: the array does not have three dimensions, or the affine is singular or left-handed.
    """
    given = np.asarray(voxels_zyx)
    if given.ndim != 3:  # noqa: PLR2004 - z, y, x
        raise InvalidValueError(f"voxels_zyx must have three dimensions, not {given.ndim}")
    geometry = Geometry((given.shape[0], given.shape[1], given.shape[2]), np.asarray(affine_lps))
    int16 = np.iinfo(np.int16)
    if np.issubdtype(given.dtype, np.integer) and int16.min <= given.min() and given.max() <= int16.max:
        return Volume(given.astype(np.int16), geometry)
    return Volume(given.astype(np.float32), geometry)


def open_model(
    name: str | os.PathLike[str],
    *,
    library: str | os.PathLike[str] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    threads: int = 0,
    parity: bool = False,
    body_crop: bool = True,
    mirroring: bool = False,
) -> OpenModel:
    """Load a model, for any number of CTs.

    ``name``: an installed model, ``phantom_demo_104``, ``tissue``, or a package folder. ``library``: the folder of
    installed models; by default that of `dicom-node models`. The other arguments are the options of
    `dicom-node segment`: ``threads`` 0 uses all cores, ``parity`` gives the same labels as TotalSegmentator,
    ``body_crop`` leaves out the air around the patient, ``mirroring`` averages over mirrored windows as nnU-Net does by
    default.

    Raises:
        ConfigurationError: the model does not exist or is damaged.
        InferenceError: this machine does not support the options.
    """
    options = EngineOptions(
        device=device,
        precision=precision,
        threads=threads,
        parity=parity,
        body_crop=body_crop,
        mirroring=mirroring,
        cache_folder=cache_folder_of_user(),
    )
    model = find_model(os.fspath(name), _library(library), options)
    return OpenModel(model.identity, model.names_by_label, model, model.load(options))


def segment(
    images: str | os.PathLike[str] | Volume,
    model: str | os.PathLike[str] | OpenModel,
    *,
    structures: Sequence[str] = (),
    results: ResultRequest | None = None,
    series_instance_uid: str | None = None,
    unchecked_hu: bool = False,
    progress: Callable[[float, str], None] | None = None,
) -> Result:
    """Segment one CT and measure what was found.

    ``images``: a folder with a DICOM series, a NIfTI file, or a :class:`Volume` (see :func:`volume`). ``model``: an
    :class:`OpenModel`, or a name for :func:`open_model`, in which case the model is loaded for this CT only.
    ``structures``: keep only these of the structures found. ``results``: the DICOM objects to make, for a DICOM series
    only; none by default. ``series_instance_uid``: which series to use if the folder has several.
    ``unchecked_hu``: take the values for Hounsfield units even if they don't look like it.
    ``progress(fraction, stage)`` is called during the run.

    Raises:
        ConfigurationError: the model does not exist, there is not exactly one CT, or something that only a DICOM series
            has was requested for another CT: DICOM results or a Series Instance UID; or the file of percentiles of
            ``results`` can't be used.
        SeriesRejected: the images do not form a CT volume that the model accepts; the message says why.
        SegmentationError: the model can't segment it.
        EncodingError: a DICOM object could not be made.
        InferenceError: the model does not find a requested structure, or the engine failed.
    """
    if isinstance(images, Volume) and series_instance_uid is not None:
        raise ConfigurationError("a volume has no Series Instance UID; series_instance_uid is for folders")
    entry = images if isinstance(images, Volume) else _only_input(Path(images), series_instance_uid)
    opened = model if isinstance(model, OpenModel) else open_model(model)
    refuse_unknown(structures, opened._model)  # noqa: SLF001 - of this module
    if results is not None and results.percentiles:
        read_percentiles(Path(results.percentiles))  # before the run, not after it
    wanted = Wanted(tuple(structures), results, unchecked_hu)
    case = _MemoryCase(entry, opened, wanted, progress or (lambda *_: None))
    analyse(case)
    return case.result()


def _library(stated: str | os.PathLike[str] | None) -> Path:
    if stated is not None:
        return Path(stated)
    named = os.environ.get("DICOM_NODE_CONFIG")
    return models_folder(Path(named) if named else None)


def _only_input(path: Path, series_instance_uid: str | None) -> Input:
    found = find_inputs((path,), recursive=False, series_instance_uid=series_instance_uid, without=None)
    if len(found) != 1:
        names = ", ".join(entry.name for entry in found)
        raise ConfigurationError(f"{path} contains {len(found)} CTs, expected one: {names}")
    return found[0]


class _MemoryCase:
    """One CT as :func:`dicom_node.analysis.analyse` sees it; keeps everything in memory."""

    def __init__(
        self,
        entry: Input | Volume,
        opened: OpenModel,
        wanted: Wanted,
        progress: Callable[[float, str], None],
    ) -> None:
        self._entry = entry
        self._opened = opened
        self._wanted = wanted
        self._progress = progress
        self._grid: FileGrid | None = None
        self._kept: tuple[Findings, tuple[EncodedResult, ...]] | None = None
        self._started_at = datetime.now(UTC)
        self.model = opened.identity.name
        self.minimum: MinimumExtent = opened._model.minimum  # noqa: SLF001 - of this module
        self.structures = wanted.structures
        self.unchecked_hu = wanted.unchecked_hu

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Report the stage; its duration is not recorded here."""
        self._progress(_BEGINS_AT[name], name)
        yield

    def read(self) -> Series | Volume:
        """The headers of the series, or the volume."""
        opened = Opened(self._entry) if isinstance(self._entry, Volume) else self._entry.read()
        self._grid = opened.grid
        if not isinstance(opened.images, Volume):
            return replace(opened.images, unchecked_hu=self._wanted.unchecked_hu)
        if self._wanted.results is not None:
            raise ConfigurationError("DICOM results require a DICOM series")
        return opened.images

    def reconstruct(self, series: Series) -> Reconstruction:
        """In this process, as everything here: a program that calls us for one CT would wait for a child to start."""
        return reconstruct(series)

    def infer(self, volume: Volume) -> Segmentation:
        """Segment in this process."""
        first, last = _BEGINS_AT["segment"], _BEGINS_AT["measure"]
        return self._opened._segmenter.segment(  # noqa: SLF001 - of this module
            volume, lambda fraction, word: self._progress(first + (last - first) * fraction, word)
        )

    def requests(self) -> Mapping[str, ResultRequest] | None:
        """One destination: the caller."""
        return None if self._wanted.results is None else {"caller": self._wanted.results}

    def encoding(self) -> AbstractContextManager[None]:
        """Nothing to wait for: no other case is encoded in this process."""
        return nullcontext()

    def context(self) -> ResultContext:
        """The same as for `dicom-node segment`, so that both make the same instances."""
        assert not isinstance(self._entry, Volume)
        return context_of(self._entry.content_digest(), self.structures, self._started_at, self._entry.missing)

    def keep(self, findings: Findings, results: Iterator[EncodedResult]) -> None:
        """Keep everything for :meth:`result`."""
        self._progress(_BEGINS_AT["encode"], "encode")
        self._kept = findings, tuple(results)
        self._progress(1.0, "segmented")

    def result(self) -> Result:
        """The result."""
        assert self._kept is not None
        findings, objects = self._kept
        segmentation, measurements = findings.segmentation, findings.measurements
        return Result(
            labels_zyx=segmentation.labels_zyx,
            geometry=segmentation.geometry,
            names_by_label=segmentation.names_by_label,
            structures=measurements.structures,
            not_found=measurements.not_found,
            model=segmentation.model,
            run=segmentation.run,
            notes=findings.notes,
            objects=objects,
            _grid=self._grid or grid_of(segmentation.geometry),
        )
