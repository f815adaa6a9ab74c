"""TID 1500 Measurement Report as Comprehensive 3D SR (PS3.16 TID 1500, PS3.3 A.35.13).

Each structure that was found has a Measurement Group (TID 1411) with the Tracking UID of its segment and a reference to
it. There is no image library, which would make the report four times larger and add nothing. Structures that were not
found, intended use and provenance are Qualitative Evaluations of the whole report. If nothing was found, the report has
no measurements and states "All algorithms succeeded; without findings".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    FindingSite,
    Measurement,
    MeasurementProperties,
    MeasurementStatisticalProperties,
    NumContentItem,
    QualitativeEvaluation,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from highdicom.sr import MeasurementsAndQualitativeEvaluations as MeasurementGroup
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.encode.codes import (
    ANATOMY_COVERAGE_INCOMPLETE,
    FINDINGS_SUMMARY,
    IMAGING_MEASUREMENTS,
    PERCENT,
    PERCENTILE_RANKING,
    QUALITATIVE_EVALUATIONS,
    WITH_FINDINGS,
    WITHOUT_FINDINGS,
    YES,
    algorithm_family,
    concept,
)
from dicom_node.encode.identity import algorithm_device_uid
from dicom_node.encode.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    Provenance,
    model_name,
    model_version,
    plain,
    series_number,
    stamp,
)
from dicom_node.encode.references import with_all_evidence
from dicom_node.encode.segments import NOTHING_FOUND, TRUNCATED
from dicom_node.encode.sr.common import author, comment, common_header, evidence_instance, predecessors, root
from dicom_node.encode.sr.measurement_groups import (
    any_rank,
    finding_site,
    measured_values,
    with_everything,
    with_groups,
)
from dicom_node.standard.part10 import PREAMBLE_LENGTH, file_of, rewritten
from dicom_node.types import ResultKind

if TYPE_CHECKING:
    from pydicom import Dataset

    from dicom_node.encode.segments import Finding, Rank, Segment
    from dicom_node.encode.source.planes import SourcePlane
    from dicom_node.encode.source.series import PreparedSource

_DEFINITION = (
    "Volume is the number of voxels times the voxel volume. Attenuation statistics are taken over the same voxels; the "
    "standard deviation is that of the voxel values. Both refer to the grid of the source images."
)
_SHAPE_DEFINITION = (
    "The mesh is computed by marching cubes, halfway between voxel centres. Axis lengths are four times the standard "
    "deviation of the voxel centres along their principal axes; elongation is minor divided by major axis length, "
    "flatness least divided by major axis length. The shape of a truncated structure is that of its visible part."
)


def report_file(
    found: tuple[Finding, ...], not_found: tuple[str, ...], provenance: Provenance, *, ibsi_codes: bool = False
) -> memoryview:
    """The report on what was ``found`` as a Part 10 file.

    highdicom makes everything except Measurement Groups and references to instances, which are written as bytes,
    modelled on one that it made.

    Raises:
        EncodingError: a measurement is not finite.
    """
    template = tuple(with_everything(finding, any_rank(found)) for finding in found[:1])
    source = provenance.source
    one_of_each = highdicom_report(template, found, not_found, provenance, source.instances[:1], ibsi_codes=ibsi_codes)
    file = memoryview(file_of(one_of_each))
    changes = with_all_evidence(file[PREAMBLE_LENGTH:], source) | with_groups(
        file[PREAMBLE_LENGTH:], found, ibsi_codes=ibsi_codes
    )
    return memoryview(rewritten(file, changes))


def highdicom_report(
    grouped: tuple[Finding, ...],
    found: tuple[Finding, ...],
    not_found: tuple[str, ...],
    provenance: Provenance,
    instances: tuple[SourcePlane, ...],
    *,
    ibsi_codes: bool = False,
) -> Dataset:
    """The report on what was ``found`` in ``instances``, with highdicom's Measurement Groups of ``grouped`` alone."""
    source, identity = provenance.source, provenance.identity
    evidence = _evidence(source, instances)
    for reference in dict.fromkeys(finding.reference for finding in found if finding.reference is not None):
        common = common_header(source.study_instance_uid)
        evidence.append(
            evidence_instance(
                common, reference.sop_class_uid, reference.sop_instance_uid, reference.series_instance_uid
            )
        )
    dataset = Comprehensive3DSR(
        evidence=evidence,
        content=_content(grouped, found, not_found, provenance, ibsi_codes=ibsi_codes),
        series_instance_uid=identity.uid("SR series"),
        series_number=series_number(provenance, ResultKind.REPORT),
        sop_instance_uid=identity.uid("SR instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        is_complete=not provenance.context.is_incomplete,
        is_final=False,
        is_verified=False,
        previous_versions=predecessors(provenance.replaced),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    stamp(dataset, provenance, "measurements")
    model, context = provenance.model, provenance.context
    dataset.AuthorObserverSequence = [
        author(model_name(model), algorithm_device_uid(context.device_uid, model), context.station_name)
    ]
    return dataset


def _content(
    grouped: tuple[Finding, ...],
    found: tuple[Finding, ...],
    not_found: tuple[str, ...],
    provenance: Provenance,
    *,
    ibsi_codes: bool,
) -> ContainerContentItem:
    containers = []
    if found:
        measured = ContainerContentItem(name=IMAGING_MEASUREMENTS, relationship_type=RelationshipTypeValues.CONTAINS)
        measured.ContentSequence = ContentSequence()
        for finding in grouped:
            measured.ContentSequence.extend(_group(finding, provenance, ibsi_codes=ibsi_codes))
        containers.append(measured)
    containers.append(_evaluations(tuple(finding.segment for finding in found), not_found, provenance))
    return root(provenance.context, containers)


def _group(finding: Finding, provenance: Provenance, *, ibsi_codes: bool) -> ContentSequence:
    """TID 1411 if there is a SEG to refer to, otherwise TID 1501."""
    segment, reference = finding.segment, finding.reference
    structure, truncated = segment.structure, segment.measurement.truncated
    site, side = finding_site(structure)
    stated: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(uid=segment.tracking_uid, identifier=plain(structure.name, 64)),
        "finding_category": concept(structure.category),
        "finding_type": concept(structure.type),
        "finding_sites": [FindingSite(concept(site), laterality=None if side is None else concept(side))],
        "algorithm_id": _algorithm(provenance),
        "measurements": _measurements(segment, ibsi_codes=ibsi_codes),
        "qualitative_evaluations": [QualitativeEvaluation(ANATOMY_COVERAGE_INCOMPLETE, YES)] if truncated else None,
    }
    group: ContentSequence
    if reference is None:
        group = MeasurementGroup(**stated)
    else:
        referenced = ReferencedSegment(
            sop_class_uid=reference.sop_class_uid,
            sop_instance_uid=reference.sop_instance_uid,
            segment_number=segment.number,
            source_series=SourceSeriesForSegmentation(provenance.source.series_instance_uid),
        )
        group = VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=referenced, **stated)
    if truncated:
        group[0].ContentSequence.append(comment(TRUNCATED))
    return group


def _algorithm(provenance: Provenance) -> AlgorithmIdentification:
    """TID 4019."""
    model = provenance.model
    return AlgorithmIdentification(
        name=model_name(model),
        version=model_version(model),
        parameters=[f"sha256={model.digest}"],
        family=algorithm_family(model.family),
    )


def _measurements(segment: Segment, *, ibsi_codes: bool) -> list[Measurement]:
    return [
        Measurement(
            name=each.kind,
            value=each.value,
            unit=each.unit,
            derivation=each.derivation,
            properties=None if each.rank is None else _properties(each.rank),
        )
        for each in measured_values(segment, ibsi_codes=ibsi_codes)
        if each.value is not None
    ]


def _properties(rank: Rank) -> MeasurementProperties:
    """TID 310 with TID 311. A percentile beyond the outer ones is no number; the description says where it is."""
    return MeasurementProperties(
        measurement_statistical_properties=MeasurementStatisticalProperties(
            values=[]
            if rank.number is None
            else [
                NumContentItem(
                    name=PERCENTILE_RANKING,
                    value=rank.number,
                    unit=PERCENT,
                    relationship_type=RelationshipTypeValues.HAS_PROPERTIES,
                )
            ],
            description=rank.population,
            authority=rank.authority,
        )
    )


def _evaluations(
    segments: tuple[Segment, ...], not_found: tuple[str, ...], provenance: Provenance
) -> ContainerContentItem:
    """Statements on the whole report: the algorithm (which a report without groups can name nowhere else), whether
    anything was found, the intended use, and what was not found.
    """
    container = ContainerContentItem(name=QUALITATIVE_EVALUATIONS, relationship_type=RelationshipTypeValues.CONTAINS)
    content = ContentSequence()
    content.extend(_algorithm(provenance))
    content.append(
        CodeContentItem(
            name=FINDINGS_SUMMARY,
            value=WITH_FINDINGS if segments else WITHOUT_FINDINGS,
            relationship_type=RelationshipTypeValues.CONTAINS,
        )
    )
    for sentence in (*provenance.statements, *_coverage(segments, not_found)):
        content.append(comment(sentence))
    container.ContentSequence = content
    return container


def _coverage(segments: tuple[Segment, ...], not_found: tuple[str, ...]) -> list[str]:
    sentences = [_DEFINITION] if segments else [NOTHING_FOUND]
    if any(segment.measurement.shape for segment in segments):
        sentences.append(_SHAPE_DEFINITION)
    truncated = [segment.structure.name for segment in segments if segment.measurement.truncated]
    if truncated:
        sentences.append(f"Truncated by the field of view (volumes are lower bounds): {', '.join(truncated)}.")
    if not_found:
        sentences.append(f"Searched for but not found: {', '.join(not_found)}.")
    return sentences


# ---- evidence


def _evidence(source: PreparedSource, instances: tuple[SourcePlane, ...]) -> list[Dataset]:
    common = common_header(source.study_instance_uid)
    return [
        evidence_instance(common, plane.sop_class_uid, plane.sop_instance_uid, source.series_instance_uid)
        for plane in instances
    ]
