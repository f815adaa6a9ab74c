"""What reports and notices share: the root of the content tree, author, comments and evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    LanguageOfContentItemAndDescendants,
    ObservationContext,
    ObserverContext,
    RelationshipTypeValues,
    TextContentItem,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes

from dicom_node.encode.codes import COMMENT, CT_UNSPECIFIED_BODY_REGION, MEASUREMENT_REPORT, PROCEDURE_REPORTED
from dicom_node.encode.provenance import MANUFACTURER, MODEL_NAME, plain
from dicom_node.encode.source.identity import TYPE_2
from dicom_node.types import ResultKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dicom_node.types import EarlierResult, ResultContext


def root(context: ResultContext, containers: Iterable[ContainerContentItem]) -> ContainerContentItem:
    """TID 1500: the root of an English report on a CT, with ``containers``."""
    report = ContainerContentItem(name=MEASUREMENT_REPORT, template_id="1500")
    content = ContentSequence()
    content.extend(LanguageOfContentItemAndDescendants(CodedConcept("en", "RFC5646", "English")))
    content.extend(_observation_context(context))
    content.append(
        CodeContentItem(
            name=PROCEDURE_REPORTED,
            value=CT_UNSPECIFIED_BODY_REGION,
            relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD,
        )
    )
    content.extend(containers)
    report.ContentSequence = content
    return report


def _observation_context(context: ResultContext) -> ObservationContext:
    """TID 1001: this node as the observer."""
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                uid=context.device_uid,
                name=plain(context.station_name, 64),
                manufacturer_name=MANUFACTURER,
                model_name=MODEL_NAME,
                serial_number=context.device_uid,
            ),
        )
    )


def comment(sentence: str) -> TextContentItem:
    """One sentence for human readers."""
    return TextContentItem(name=COMMENT, value=sentence, relationship_type=RelationshipTypeValues.CONTAINS)


def predecessors(replaced: tuple[EarlierResult, ...]) -> list[Dataset] | None:
    """The reports among ``replaced``, for the Predecessor Documents Sequence (PS3.3 C.17.2)."""
    return [
        evidence_instance(
            common_header(each.study_instance_uid), each.sop_class_uid, each.sop_instance_uid, each.series_instance_uid
        )
        for each in replaced
        if each.kind.family is ResultKind.REPORT
    ] or None


def author(name: str, device_uid: str, station_name: str) -> Dataset:
    """The device that made the content of a report (PS3.3 table C.17-3b)."""
    device = Dataset()
    device.ObserverType = "DEV"
    device.Manufacturer = MANUFACTURER
    device.ManufacturerModelName = name
    device.DeviceUID = device_uid
    device.StationName = plain(station_name, 16)
    device.InstitutionName = ""
    device.InstitutionCodeSequence = []
    return device


def common_header(study_instance_uid: str) -> Dataset:
    """The attributes shared by the instances of a study that highdicom reads from evidence."""
    common = Dataset()
    common.StudyInstanceUID = study_instance_uid
    for keyword in TYPE_2:
        setattr(common, keyword, "")
    return common


def evidence_instance(common: Dataset, sop_class_uid: str, sop_instance_uid: str, series_instance_uid: str) -> Dataset:
    """The attributes of an instance that highdicom reads from evidence."""
    instance = Dataset()
    instance.update(common)
    instance.SOPClassUID = sop_class_uid
    instance.SOPInstanceUID = sop_instance_uid
    instance.SeriesInstanceUID = series_instance_uid
    return instance
