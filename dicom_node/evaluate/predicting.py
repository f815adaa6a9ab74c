"""Segments the CTs of a truth with a model of the node; earlier segmentations are kept."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from dicom_node import __version__
from dicom_node.analysis import on_source_grid, reconstructed, refuse_too_small
from dicom_node.dataset.files import digest_of, read_json, replaced_file, sha256_of, write_json
from dicom_node.errors import ConfigurationError, DicomNodeError
from dicom_node.evaluate.cases import Problem
from dicom_node.labelmaps import DicomImage, LabelFile
from dicom_node.nifti import grid_of, read_volume, write_labels
from dicom_node.standard.files import read_headers
from dicom_node.types import Series
from inference.errors import InferenceError, SegmentationRefusedError
from inference.types import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dicom_node.labelmaps import Image, LabelSource
    from dicom_node.nifti import FileGrid
    from dicom_node.segment.model import Model
    from inference.nnunet.contract import EngineOptions
    from inference.types import Segmenter, Volume


class Case(Protocol):
    """A subject to segment."""

    @property
    def id(self) -> str:
        """By which its results are called."""
        ...

    @property
    def image(self) -> Image | None:
        """Its CT; None if it is not there."""
        ...


def segmented(
    cases: Sequence[Case],
    model: Model,
    options: EngineOptions,
    folder: Path,
    report: Callable[[str, int, int], None],
) -> tuple[dict[str, LabelSource], list[Problem]]:
    """The label map of each subject in ``folder``, by id, and the subjects that the model can't segment.

    Raises:
        ConfigurationError: the model can't be loaded, or ``folder`` can't be written.
    """
    sources: dict[str, LabelSource] = {}
    problems: list[Problem] = []
    segmenter: Segmenter | None = None
    for done, case in enumerate(cases):
        report("segmenting", done, len(cases))
        if case.image is None:
            problems.append(Problem(case.id, "there is no CT that could be segmented"))
            continue
        path = folder / f"{case.id}.nii.gz"
        try:
            asked = _asked(case.image, model, options)
            if not _is_finished(path, asked):
                segmenter = segmenter or _loaded(model, options)
                _segment(case.image, model, segmenter, path)
                write_json(path.with_name(f"{case.id}.json"), {"asked": asked, "sha256": sha256_of(path)})
        except ConfigurationError:
            raise
        except (DicomNodeError, SegmentationRefusedError, InvalidValueError) as error:
            problems.append(Problem(case.id, f"not segmented: {error}"))
        except OSError as error:
            problems.append(Problem(case.id, f"not segmented: {error.strerror}"))
        else:
            sources[case.id] = LabelFile(path)
    report("segmenting", len(cases), len(cases))
    return sources, problems


def _loaded(model: Model, options: EngineOptions) -> Segmenter:
    try:
        return model.load(options)
    except InferenceError as error:
        raise ConfigurationError(f"model {model.identity.name}: {error}") from error


def _asked(image: Image, model: Model, options: EngineOptions) -> str:
    """A digest of everything that determines the labels."""
    asked: Any = [__version__, asdict(model.identity), options.device, options.precision, options.threads]
    return digest_of([asked, [sha256_of(path) for path in image.paths]])


def _is_finished(path: Path, asked: str) -> bool:
    earlier = read_json(path.with_name(f"{path.name.removesuffix('.nii.gz')}.json"))
    if earlier is None or earlier.get("asked") != asked or not path.is_file():
        return False
    return bool(earlier.get("sha256") == sha256_of(path))


def _segment(image: Image, model: Model, segmenter: Segmenter, path: Path) -> None:
    images, grid = _images(image)
    ct = reconstructed(images)
    refuse_too_small(ct, model.minimum)
    labels = on_source_grid(ct, segmenter.segment(ct.volume, lambda *_: None))
    description = f"{model.identity.name} {model.identity.version}; research use only"
    with replaced_file(path) as part:
        write_labels(part, labels.labels_zyx, grid or grid_of(labels.geometry), labels.names_by_label, description)


def _images(image: Image) -> tuple[Series | Volume, FileGrid | None]:
    if not isinstance(image, DicomImage):
        return read_volume(image.path)
    instances = read_headers(image.paths)
    study_instance_uid = str(instances[0].header.get("StudyInstanceUID", ""))
    return Series(image.series_instance_uid, study_instance_uid, instances), None
