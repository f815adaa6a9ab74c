"""From labels and measurements to checked DICOM objects in the source study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node.encode.check import refuse_other_identity, refuse_other_labels, refuse_other_measurements, reread
from dicom_node.encode.identity import RunIdentity
from dicom_node.encode.provenance import Provenance, statements
from dicom_node.encode.seg import segmentation_file
from dicom_node.encode.segments import present_segments
from dicom_node.encode.source import prepare
from dicom_node.encode.sr import report_file
from dicom_node.errors import DicomNodeError, EncodingError
from dicom_node.types import EncodedResult, ResultKind

if TYPE_CHECKING:
    from pydicom import Dataset

    from dicom_node.types import Reconstruction, ResultContext
    from inference.types import Measurements, Segmentation


def encode(
    reconstruction: Reconstruction,
    segmentation: Segmentation,
    measurements: Measurements,
    context: ResultContext,
) -> tuple[EncodedResult, ...]:
    """SEG and SR of one run, read back from their bytes and equal to what was put in.

    ``segmentation`` lies on the source grid: ``labels_zyx[k]`` belongs to ``reconstruction.frames[k]``. When no
    structure was found there is an SR that says so and no SEG, because a SEG without a segment is not a valid object.
    The same arguments give the same bytes.

    Raises:
        IdentityConflict: the source instances are of several patients, studies, series or Frames of Reference.
        EncodingError: an attribute that a result cannot do without is missing, arguments contradict each other, or an
            object did not read back equal.
    """
    if not segmentation.geometry.same_grid(reconstruction.source.geometry):
        raise EncodingError(
            f"labels lie on a grid of {segmentation.geometry.shape_zyx}, not on that of the source frames "
            f"{reconstruction.source.geometry.shape_zyx}"
        )
    try:
        return _encode(reconstruction, segmentation, measurements, context)
    except DicomNodeError:
        raise
    except Exception as error:
        # highdicom and pydicom quote values in their messages, which may be patient data: the type is all we repeat
        raise EncodingError(f"unexpected {type(error).__name__} while building the results") from error


def _encode(
    reconstruction: Reconstruction,
    segmentation: Segmentation,
    measurements: Measurements,
    context: ResultContext,
) -> tuple[EncodedResult, ...]:
    source = prepare(reconstruction)
    identity = RunIdentity.of(source.series_instance_uid, segmentation.model, context)
    said = statements(context, segmentation.model, len(source.planes), reconstruction.notes)
    provenance = Provenance(identity, context, source, said)
    segments = present_segments(segmentation, measurements, identity)
    results: list[EncodedResult] = []
    seg: Dataset | None = None
    if segments:
        content = segmentation_file(segmentation.labels_zyx, segments, provenance)
        seg = reread(content)
        refuse_other_identity(seg, source)
        refuse_other_labels(content, segmentation.labels_zyx, segments, source)
        results.append(encoded_result(ResultKind.SEGMENTATION, seg, content))
    content = report_file(seg, segments, measurements.not_found, provenance)
    sr = reread(content)
    refuse_other_identity(sr, source)
    refuse_other_measurements(content, segments, None if seg is None else str(seg.SOPInstanceUID))
    results.append(encoded_result(ResultKind.REPORT, sr, content))
    return tuple(results)


def encoded_result(kind: ResultKind, dataset: Dataset, content: memoryview) -> EncodedResult:
    """``content`` and the UIDs that ``dataset``, read from it, has."""
    return EncodedResult(
        kind=kind,
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        content=content,
    )
