"""The notice that a series was not processed, and why, for the archive that holds its images.

It is a TID 1500 report (Comprehensive 3D SR, as in IHE AIR) without measurements that states "No algorithms succeeded;
without findings" (CID 6047). It is not a Key Object Selection, because the fitting document titles make an archive hide
the referenced images (IHE IOCM), and nothing is wrong with images that a model was not made for. The reason is also in
the Series Description, where every viewer shows it.

The headers of the source need only say whose they are: they may be those from which no volume could be made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from highdicom.sr import CodeContentItem, Comprehensive3DSR, ContainerContentItem, ContentSequence
from highdicom.sr import RelationshipTypeValues as Relationship
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node import __version__
from dicom_node.encode.codes import (
    FINDINGS_SUMMARY,
    NOTHING_SUCCEEDED,
    QUALITATIVE_EVALUATIONS,
)
from dicom_node.encode.identity import derived_uid
from dicom_node.encode.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    NODE_SOFTWARE,
    equipment_without_algorithm,
    in_time_zone,
    plain,
    replacement,
    series_number_of,
    stamp_identity,
)
from dicom_node.encode.reread import refuse_other_names, reread
from dicom_node.encode.source.series import NamedSeries, name_series
from dicom_node.encode.sr.common import (
    author,
    comment,
    common_header,
    evidence_instance,
    predecessors,
    root,
)
from dicom_node.errors import DicomNodeError, EncodingError
from dicom_node.standard.part10 import file_of
from dicom_node.types import ResultKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from dicom_node.types import EarlierResult, ResultContext

_LO, _UT = 64, 1024


def notice_file(
    headers: Sequence[Dataset],
    model: str | None,
    reason: str,
    context: ResultContext,
    replaced: tuple[EarlierResult, ...] = (),
) -> memoryview:
    """A Part 10 file stating that ``model`` (None: no model) did not process the series of ``headers``.

    ``replaced`` are results of earlier revisions. The same arguments give the same UIDs. ``reason`` is a phrase for
    human readers without patient data.

    Raises:
        IdentityConflict: the instances belong to several patients, studies or series.
        EncodingError: a required attribute is missing.
    """
    try:
        series = name_series(headers)
        dataset = _report(series, model, reason, context, replaced)
        content = memoryview(file_of(dataset))
        refuse_other_names(reread(content), series.identity, series.study_instance_uid)
    except (DicomNodeError, MemoryError):
        raise
    except Exception as error:
        # highdicom and pydicom quote values in their messages, which may be patient data
        raise EncodingError(f"unexpected {type(error).__name__} while building the notice") from error
    return content


def _report(
    series: NamedSeries,
    model: str | None,
    reason: str,
    context: ResultContext,
    replaced: tuple[EarlierResult, ...],
) -> Dataset:
    identity = (__version__, series.series_instance_uid, context.content_digest, context.revision, model or "")
    common = common_header(series.study_instance_uid)
    dataset: Dataset = Comprehensive3DSR(
        evidence=[
            evidence_instance(common, CTImageStorage, uid, series.series_instance_uid) for _, uid in series.instances
        ],
        content=_content(_sentences(series, model, reason, context, replaced), context),
        series_instance_uid=derived_uid("dicom-node notice series", *identity),
        series_number=series_number_of(series.series_number, model or "", ResultKind.NOTICE),
        sop_instance_uid=derived_uid(
            "dicom-node notice instance", *identity, reason, *(each.sop_instance_uid for each in replaced)
        ),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=predecessors(replaced),
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    _state_classes(dataset, series)
    dataset.SeriesDescription = plain(_title(model, reason, context), _LO)
    dataset.SoftwareVersions = NODE_SOFTWARE
    dataset.ContributingEquipmentSequence = equipment_without_algorithm(series.acquisition_equipment, context)
    dataset.AuthorObserverSequence = [author(MODEL_NAME, context.device_uid, context.station_name)]
    stamp_identity(dataset, series.identity, context, in_time_zone(context.started_at, series.timezone_offset))
    return dataset


def _state_classes(dataset: Dataset, series: NamedSeries) -> None:
    """Set the SOP Classes of the evidence; highdicom (0.28.2) fails on those that are not in its tables."""
    classes = {uid: sop_class for sop_class, uid in series.instances}
    (study,) = dataset.CurrentRequestedProcedureEvidenceSequence
    for evidence in study.ReferencedSeriesSequence:
        for reference in evidence.ReferencedSOPSequence:
            reference.ReferencedSOPClassUID = classes[reference.ReferencedSOPInstanceUID]


def _title(model: str | None, reason: str, context: ResultContext) -> str:
    by = "" if model is None else f" by {_name(model)[:24]}"
    revision = f" rev {context.revision}" if context.revision > 1 else ""
    return f"Not processed{by}{revision}: {reason}"


def _content(sentences: Sequence[str], context: ResultContext) -> ContainerContentItem:
    evaluations = ContainerContentItem(name=QUALITATIVE_EVALUATIONS, relationship_type=Relationship.CONTAINS)
    evaluations.ContentSequence = ContentSequence(
        [
            CodeContentItem(name=FINDINGS_SUMMARY, value=NOTHING_SUCCEEDED, relationship_type=Relationship.CONTAINS),
            *(comment(plain(sentence, _UT)) for sentence in sentences),
        ]
    )
    return root(context, [evaluations])


def _sentences(
    series: NamedSeries,
    model: str | None,
    reason: str,
    context: ResultContext,
    replaced: tuple[EarlierResult, ...],
) -> tuple[str, ...]:
    by = "" if model is None else f" by model {_name(model)}"
    return (
        f"Not processed: {reason.rstrip('.')}.",
        f"No measurements were made{by}; this notice is not a statement about the image content.",
        f"{NODE_SOFTWARE} is research software, not a medical device.",
        f"Revision {context.revision} of series {series.series_instance_uid} ({len(series.instances)} instances).",
        *(f"{note[:1].upper()}{note[1:]}." for note in context.notes_on_missing),
        *((replacement(replaced),) if replaced else ()),
    )


def _name(model: str) -> str:
    return plain(model, _LO) or "unnamed"
