"""Every object that the node makes, from small synthetic series that differ in one condition at a time.

The statement describes an attribute of a created object as these objects show it: whether it is present in all of them,
and whether its value is that of the source, depends on a condition, or is always the same. The headers of the source
have every attribute of the patient, study, series, equipment and general image modules of PS3.3, so that everything
that the node copies is found.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    LegacyConvertedEnhancedCTImageStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_node.conformance import iods
from dicom_node.encode.run import encode, encode_notice
from dicom_node.percentiles import (
    PERCENTILES,
    SCHEMA_NAME,
    SCHEMA_VERSION,
    STATEMENT,
    Curve,
    OfModel,
    References,
)
from dicom_node.percentiles import Sample as Patients
from dicom_node.types import (
    EarlierResult,
    Reconstruction,
    ResultContext,
    ResultKind,
    ResultRequest,
    SegmentationForm,
    SourceFrame,
)
from inference.measure import measure
from inference.structures import STRUCTURES
from inference.types import Geometry, ModelIdentity, RunNote, RunReport, Segmentation, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dicom_node.percentiles import Quantity, Sex
    from inference.structures import Structure

CONDITIONS = ("source", "model", "installation", "run", "labels", "request")
"""What the value of an attribute may depend on: headers and grid of the source series, the model, the settings and
UID of the installation, time and circumstances of the run, the structures that were found, the request.
"""
PAGE, OVERLAY = "report page", "overlay image"
_IMAGES_PER_SERIES_KIND = 10
_SOURCE_ENTITIES = frozenset({"Patient", "Study", "Series", "Equipment", "Frame of Reference"})
_SOURCE_MODULES = ("general-image", "sop-common")
_CHOSEN: dict[str, tuple[Any, Any]] = {
    "SpecificCharacterSet": ("ISO_IR 100", "ISO_IR 192"),
    "PatientSex": ("F", "M"),
    "PatientIdentityRemoved": ("YES", "NO"),
    "LossyImageCompression": ("01", "00"),
    "TimezoneOffsetFromUTC": ("+0100", "+0200"),
    "BodyPartExamined": ("CHEST", "ABDOMEN"),
    "Modality": ("CT", "CT"),
    "SOPClassUID": (CTImageStorage, CTImageStorage),
}
_MODELS = (
    ModelIdentity(name="first", version="1", digest="1a" * 32, family="nnU-Net"),
    ModelIdentity(name="second", version="2", digest="2b" * 32, family="Thresholding", intended_use="Teaching"),
)
_COHORTS = ("first cohort", "second cohort")
"""Files of percentiles, which differ in the name of the cohort alone."""
_QUANTITIES: dict[Quantity, tuple[float, ...]] = {
    "volume_ml": (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
    "mean_hu": (-1000.0, -500.0, -200.0, 0.0, 200.0, 500.0, 1000.0),
}
"""The values of the percentiles of every structure."""
_SEXES: tuple[Sex, ...] = ("F", "M")
_AGES_YEARS = (10, 11)
"""Of the patients of the two sources."""
_DESTINATION = "archive"
_EARLIER = tuple(
    EarlierResult(kind, sop_class, f"2.25.7{number}", f"2.25.8{number}", "2.25.9", revision=1)
    for number, (kind, sop_class) in enumerate(
        (
            (ResultKind.SEGMENTATION, str(SegmentationStorage)),
            (ResultKind.REPORT, str(Comprehensive3DSRStorage)),
            (ResultKind.CONTOURS, str(RTStructureSetStorage)),
            (ResultKind.CAPTURE, str(SecondaryCaptureImageStorage)),
            (ResultKind.DOCUMENT, str(EncapsulatedPDFStorage)),
        )
    )
)
"""The results of the earlier revision that the destination has in the second run."""
_INSTALLATIONS = (("node-1", "2.25.1"), ("node-2", "2.25.2"))


@dataclass(frozen=True, slots=True)
class Condition:
    """Which of two values each of :data:`CONDITIONS` has, and how the source series is stored.

    ``bare``: its headers have only what a result requires. ``nothing_found``: no structure at all.
    """

    source: int = 0
    model: int = 0
    installation: int = 0
    run: int = 0
    labels: int = 0
    request: int = 0
    multi_frame: bool = False
    bare: bool = False
    nothing_found: bool = False

    @property
    def is_other_source(self) -> bool:
        """Whether the source series is neither of the two full classic ones."""
        return self.bare or self.multi_frame


BASE = Condition()


def altered(name: str) -> Condition:
    """:data:`BASE` with the other value of one of :data:`CONDITIONS`."""
    change: dict[str, Any] = {name: 1}
    return replace(BASE, **change)


@dataclass(frozen=True, slots=True)
class Sample:
    """One object and a header of its source; ``part`` distinguishes two types of object of one kind."""

    kind: ResultKind
    part: str
    condition: Condition
    dataset: Dataset
    source: Dataset


@cache
def samples() -> tuple[Sample, ...]:
    """All samples; the first condition is :data:`BASE`, and each other one changes it."""
    conditions = (
        BASE,
        *(altered(name) for name in CONDITIONS),
        replace(BASE, bare=True),
        replace(BASE, multi_frame=True),
        replace(BASE, nothing_found=True),
    )
    return tuple(sample for condition in conditions for sample in _made(condition))


def _made(condition: Condition) -> Iterator[Sample]:
    reconstruction = _reconstruction(condition)
    segmentation = _segmentation(condition, reconstruction)
    context = _context(condition)
    measurements = measure(reconstruction.source, segmentation, with_shape=True)
    percentiles = {cohort: _percentiles(cohort) for cohort in _COHORTS}
    results = encode(reconstruction, segmentation, measurements, context, _requests(condition), percentiles)
    notices = encode_notice(
        reconstruction.headers, segmentation.model.name, _REASONS[condition.run], context, (_DESTINATION,)
    )
    for result in (*results, *notices):
        dataset = result.dataset
        yield Sample(result.kind, _part(result.kind, dataset), condition, dataset, reconstruction.headers[0])


_REASONS = ("The series has 3 images, 16 are needed.", "The planes are not evenly spaced.")


def _requests(condition: Condition) -> dict[str, ResultRequest]:
    """Every kind of object, and a report without a SEG to refer to; the second time with some of the structures."""
    pages = not condition.nothing_found
    if condition.request:
        chosen = tuple(structure.name for structure in _structures(condition.labels)[0][:2])
        binary = ResultRequest(structures=chosen, contours=chosen, report=False, capture=pages, document=pages)
        labelmap = ResultRequest(
            segmentation=SegmentationForm.LABELMAP, background=False, structures=chosen, percentiles=_COHORTS[1]
        )
        return {_DESTINATION: labelmap, "another": binary}
    everything = ResultRequest(
        segmentation=SegmentationForm.BOTH,
        ibsi_codes=True,
        shape=True,
        contours=tuple(structure.name for structure in STRUCTURES),
        capture=pages,
        document=pages,
        percentiles=_COHORTS[0],
    )
    return {_DESTINATION: everything, "another": ResultRequest(segmentation=SegmentationForm.NONE)}


def _part(kind: ResultKind, dataset: Dataset) -> str:
    if kind is not ResultKind.CAPTURE:
        return ""
    # the last digit of a series number counts the series of a kind; the pages are the first
    return PAGE if int(dataset.SeriesNumber) % _IMAGES_PER_SERIES_KIND == 1 else OVERLAY


@cache
def _percentiles(cohort: str) -> References:
    """Of every structure in women and men, as measured by the first model."""
    curves = tuple(
        Curve(
            structure=each.name,
            quantity=quantity,
            sex=sex,
            patients=120,
            ages_years=_AGES_YEARS,
            patients_near=(20, 21),
            values=tuple((value, value) for value in values),
        )
        for each in STRUCTURES
        for quantity, values in _QUANTITIES.items()
        for sex in _SEXES
    )
    return made_up_percentiles(curves, _MODELS[0], cohort)


def made_up_percentiles(curves: tuple[Curve, ...], model: ModelIdentity, cohort: str = "sample") -> References:
    """A document with these ``curves``, as measured by ``model`` in patients who do not exist."""
    return References(
        schema_name=SCHEMA_NAME,
        schema_version=SCHEMA_VERSION,
        statement=STATEMENT,
        created_at=datetime(2009, 1, 2, tzinfo=UTC),
        node_version="0.2.0",
        model=OfModel(name=model.name, version=model.version, digest=model.digest),
        method="made up",
        sample=Patients(
            cohort=cohort,
            source="made up",
            source_digest="3c" * 32,
            selection="all",
            patients=240,
            women=120,
            men=120,
            contrast={"without": 240},
            series_in_table=240,
            series_left_out={},
            series_or_reports_without_rows=0,
            rows_left_out=0,
            rows_of_other_models={},
            values_left_out={},
        ),
        percentiles=PERCENTILES,
        fewest_patients=120,
        curves=curves,
        left_out=(),
    )


# ---- the source


def _reconstruction(condition: Condition) -> Reconstruction:
    geometry = _geometry(condition.source)
    voxels = np.random.default_rng(condition.source).integers(-900, 900, geometry.shape_zyx).astype(np.int16)
    volume = Volume(voxels, geometry)
    planes = range(geometry.shape_zyx[0])
    headers: tuple[Dataset, ...]
    if condition.multi_frame:
        headers = (_multi_frame_header(condition, geometry),)
        frames = tuple(
            SourceFrame(str(headers[0].SOPInstanceUID), str(LegacyConvertedEnhancedCTImageStorage), k + 1)
            for k in planes
        )
    else:
        headers = tuple(_plane_header(condition, geometry, k) for k in planes)
        frames = tuple(SourceFrame(str(header.SOPInstanceUID), str(CTImageStorage)) for header in headers)
    return Reconstruction(volume=volume, source=volume, frames=frames, headers=headers)


def _geometry(source: int) -> Geometry:
    """Two grids that differ in size, spacing and position; the second is of a prone patient."""
    shape_zyx, spacing_mm = (((6, 16, 24), (0.75, 0.5, 2.5)), ((7, 24, 16), (0.5, 0.75, 1.5)))[source]
    sign = (1.0, -1.0)[source]
    affine = np.diag((sign * spacing_mm[0], sign * spacing_mm[1], spacing_mm[2], 1.0))
    affine[:3, 3] = ((-8.0, -6.0, 10.0), (9.0, 7.0, 20.0))[source]
    return Geometry(shape_zyx, affine)


def _plane_header(condition: Condition, geometry: Geometry, k: int) -> Dataset:
    header = _common_header(condition, geometry)
    header.SOPInstanceUID = f"{header.SeriesInstanceUID}.{k + 1}"
    header.update(_position(geometry, k))
    header.update(_orientation(geometry))
    header.update(_measures(geometry, condition))
    return header


def _multi_frame_header(condition: Condition, geometry: Geometry) -> Dataset:
    header = _common_header(condition, geometry)
    header.SOPClassUID = LegacyConvertedEnhancedCTImageStorage
    header.SOPInstanceUID = f"{header.SeriesInstanceUID}.1"
    header.NumberOfFrames = geometry.shape_zyx[0]
    shared = Dataset()
    shared.PlaneOrientationSequence = [_orientation(geometry)]
    shared.PixelMeasuresSequence = [_measures(geometry, condition)]
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = []
    for k in range(geometry.shape_zyx[0]):
        group = Dataset()
        group.PlanePositionSequence = [_position(geometry, k)]
        header.PerFrameFunctionalGroupsSequence.append(group)
    return header


def _position(geometry: Geometry, k: int) -> Dataset:
    item = Dataset()
    item.ImagePositionPatient = [float(value) for value in (geometry.affine_lps @ (0, 0, k, 1))[:3]]
    return item


def _orientation(geometry: Geometry) -> Dataset:
    item = Dataset()
    item.ImageOrientationPatient = [float(value) for value in geometry.direction[:, :2].T.ravel()]
    return item


def _measures(geometry: Geometry, condition: Condition) -> Dataset:
    column_mm, row_mm, _ = geometry.spacing_xyz_mm
    item = Dataset()
    item.PixelSpacing = [row_mm, column_mm]
    if not condition.bare:
        item.SliceThickness = (3.0, 2.0)[condition.source]
    return item


def _common_header(condition: Condition, geometry: Geometry) -> Dataset:
    header = Dataset() if condition.bare else deepcopy(_filled(condition.source))
    header.SOPClassUID = CTImageStorage
    header.StudyInstanceUID = f"1.2.3.{condition.source}"
    header.SeriesInstanceUID = f"1.2.3.{condition.source}.1"
    header.FrameOfReferenceUID = f"1.2.3.{condition.source}.2"
    _, header.Rows, header.Columns = geometry.shape_zyx
    return header


@cache
def _filled(source: int) -> Dataset:
    """A header with every attribute of the entities that an image shares with its series, and of general images."""
    modules = [module.key for module in iods.modules(CTImageStorage) if module.entity in _SOURCE_ENTITIES]
    header, numbers = Dataset(), count(1)
    for module in dict.fromkeys((*modules, *_SOURCE_MODULES)):
        paths = tuple(iods.attribute_types(module))
        for *sequences, keyword in paths:
            if sequences or keyword in header:
                continue
            if dictionary_VR(_tag(keyword)) == "SQ":
                item = Dataset()
                for *parents, child in paths:
                    if parents == [keyword]:
                        _put_value(item, child, source, next(numbers))
                setattr(header, keyword, [item])
            else:
                _put_value(header, keyword, source, next(numbers))
    return header


def _put_value(dataset: Dataset, keyword: str, source: int, number: int) -> None:
    """Set a value that is valid for its VR and different for each ``number`` and ``source``."""
    vr, changing = dictionary_VR(_tag(keyword)), 2 * number + source
    text = f"{keyword[:10]} {changing}"
    values: dict[str, Any] = {
        "AE": f"AE{changing}",
        "AS": f"{10 + source:03d}Y",
        "CS": f"CODE {changing}",
        "DA": f"20{10 + source}{1 + number % 12:02d}{1 + number % 28:02d}",
        "DS": float(changing),
        "DT": f"20{10 + source}0101{number % 24:02d}{number // 24 % 60:02d}00",
        "IS": changing,
        "PN": f"Family{changing}^Given",
        "TM": f"{number % 24:02d}{number // 24 % 60:02d}{source:02d}",
        "UI": f"1.2.9.{changing}",
        "UR": f"urn:{changing}",
        **dict.fromkeys(("LO", "LT", "SH", "ST", "UC", "UT"), text[-16:]),
        **dict.fromkeys(("FD", "FL"), float(changing)),
        **dict.fromkeys(("SL", "SS", "UL", "US"), changing),
    }
    if keyword in _CHOSEN:
        setattr(dataset, keyword, _CHOSEN[keyword][source])
    elif vr in values:
        setattr(dataset, keyword, values[vr])


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


# ---- the run


def _context(condition: Condition) -> ResultContext:
    station_name, device_uid = _INSTALLATIONS[condition.installation]
    first = ResultContext(
        # the same date in nearly every time zone: a bare series is dated in the time zone of this machine
        started_at=datetime(2010, 3, 4, 10, 31, 7, 89000, tzinfo=UTC),
        revision=1,
        content_digest="0f" * 32,
        station_name=station_name,
        device_uid=device_uid,
        completion_reason="positions are regular",
    )
    if not condition.run:
        return first
    return replace(
        first,
        started_at=datetime(2011, 4, 5, 10, 32, 8, 90000, tzinfo=UTC),
        revision=2,
        content_digest="f0" * 32,
        completion_reason="nothing came for a while",
        missing_instances=3,
        refused_instances=2,
        earlier={_DESTINATION: _EARLIER},
    )


def _segmentation(condition: Condition, reconstruction: Reconstruction) -> Segmentation:
    """Boxes, the first of which touches the border; a bare series has one structure, which does not."""
    geometry, (found, missing) = reconstruction.source.geometry, _structures(condition.labels)
    if condition.bare:
        found = found[-1:]
    if condition.nothing_found:
        found, missing = [], [*found, *missing]
    labels_zyx = np.zeros(geometry.shape_zyx, dtype=np.uint8)
    for label in range(1, len(found) + 1):
        first_column = 3 * (label - 1) if len(found) > 1 else 4
        labels_zyx[1 + condition.labels : 4, 3:9, first_column : first_column + 3] = label
    names = dict(enumerate((structure.name for structure in (*found, *missing)), start=1))
    run = RunReport("numpy", "CPU", "float32", (RunNote("fell back to another engine", changes_answer=True),))
    return Segmentation(labels_zyx, geometry, names, _MODELS[condition.model], run if condition.run else None)


def _structures(labels: int) -> tuple[list[Structure], list[Structure]]:
    """One structure for every combination of codes, one fewer the second time, and one that was not found."""
    by_shape: dict[tuple[object, ...], list[Structure]] = {}
    for each in STRUCTURES:
        shape = (each.type_modifier is None, each.region is None, each.region_modifier is None, each.category)
        by_shape.setdefault(shape, []).append(each)
    found = [alike[labels % len(alike)] for alike in by_shape.values()][: len(by_shape) - labels]
    return found, [next(each for each in reversed(STRUCTURES) if each not in found)]
