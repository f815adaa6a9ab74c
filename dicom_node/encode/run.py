"""Encode the results of a run, in every form that a destination asked for, and check each of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydicom.uid import SegmentationStorage

from dicom_node.encode.identity import RunIdentity
from dicom_node.encode.percentiles import Placing
from dicom_node.encode.provenance import Provenance, statements
from dicom_node.encode.reread import refuse_other_identity, reread
from dicom_node.encode.seg.binary import segmentation_file
from dicom_node.encode.seg.check import refuse_other_labelmap, refuse_other_labels
from dicom_node.encode.seg.labelmap import labelmap_file
from dicom_node.encode.segments import Finding, SegmentationReference, present_segments, without_shape
from dicom_node.encode.source.series import prepare
from dicom_node.encode.sr.check import refuse_other_measurements
from dicom_node.encode.sr.notice import notice_file
from dicom_node.encode.sr.report import report_file
from dicom_node.encode.variants import ContoursVariant, PagesVariant, SegmentationVariant, variants
from dicom_node.errors import DicomNodeError, EncodingError
from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE, EncodedResult, ResultKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydicom import Dataset

    from dicom_node.encode.segments import Segment
    from dicom_node.encode.variants import ReportVariant, Variant
    from dicom_node.percentiles import References
    from dicom_node.types import EarlierResult, Reconstruction, ResultContext, ResultRequest
    from inference.types import Measurements, RunReport, Segmentation

_SOP_CLASSES = {
    ResultKind.SEGMENTATION: str(SegmentationStorage),
    ResultKind.LABELMAP: LABEL_MAP_SEGMENTATION_STORAGE,
}


def encode(
    reconstruction: Reconstruction,
    segmentation: Segmentation,
    measurements: Measurements,
    context: ResultContext,
    requests: Mapping[str, ResultRequest] | None = None,
    percentiles: Mapping[str, References] | None = None,
) -> tuple[EncodedResult, ...]:
    """The objects of one run, read back from their bytes and found equal to the input.

    ``segmentation`` lies on the source grid: ``labels_zyx[k]`` belongs to ``reconstruction.frames[k]``. ``requests``
    say what each destination gets; an object that several ask for is made once and lists them. Without a destination,
    a BINARY SEG and an SR are made. If no structure was found, an SR says so; there is neither a SEG, which is not
    valid without a segment, nor a structure set. ``percentiles`` are the files that ``requests`` name, read. The same
    arguments give the same bytes.

    Raises:
        IdentityConflict: the source instances belong to several patients, studies, series or Frames of Reference.
        EncodingError: a required attribute is missing, arguments contradict each other, or an object did not read
            back equal.
    """
    return tuple(encode_in_turn(reconstruction, segmentation, measurements, context, requests, percentiles))


def encode_in_turn(
    reconstruction: Reconstruction,
    segmentation: Segmentation,
    measurements: Measurements,
    context: ResultContext,
    requests: Mapping[str, ResultRequest] | None = None,
    percentiles: Mapping[str, References] | None = None,
) -> Iterator[EncodedResult]:
    """As :func:`encode`, each object as soon as it is made, so that it can be written while the next one is made."""
    if not segmentation.geometry.same_grid(reconstruction.source.geometry):
        raise EncodingError(
            f"labels lie on a grid of {segmentation.geometry.shape_zyx}, not on that of the source frames "
            f"{reconstruction.source.geometry.shape_zyx}"
        )
    try:
        header = reconstruction.headers[0]
        placings = {file: Placing.of(each, header, segmentation.model) for file, each in (percentiles or {}).items()}
        digests = {file: placing.digest for file, placing in placings.items()}
        run = _Run(reconstruction, segmentation, measurements, context, tuple(placings.values()))
        for variant, destinations in variants(requests or {}, run.segments, context.earlier, digests).items():
            for result in run.made(variant):
                yield replace(result, destinations=destinations)
    except (DicomNodeError, MemoryError):
        raise
    except Exception as error:
        # messages of highdicom and pydicom quote values, which may be patient data: only the type is repeated
        raise EncodingError(f"unexpected {type(error).__name__} while building the results") from error


def encode_notice(
    headers: Sequence[Dataset], model: str | None, reason: str, context: ResultContext, destinations: tuple[str, ...]
) -> tuple[EncodedResult, ...]:
    """Notices that ``model`` did not segment a series (None: a rule refused it), and why.

    Destinations that hold the same results of earlier revisions share one notice, which supersedes these.

    Raises:
        IdentityConflict: the instances belong to several patients, studies or series.
        EncodingError: a required attribute is missing.
    """
    receivers: dict[tuple[EarlierResult, ...], tuple[str, ...]] = {}
    for destination in destinations:
        # a notice that is made again must be the same instance and must not supersede itself
        held = tuple(each for each in context.earlier.get(destination, ()) if each.revision < context.revision)
        receivers[held] = (*receivers.get(held, ()), destination)
    made = []
    for replaced, names in receivers.items():
        content = notice_file(headers, model, reason, context, replaced)
        made.append(replace(encoded_result(ResultKind.NOTICE, reread(content), content), destinations=names))
    return tuple(made)


class _Run:
    """What the objects of one run have in common."""

    def __init__(
        self,
        reconstruction: Reconstruction,
        segmentation: Segmentation,
        measurements: Measurements,
        context: ResultContext,
        placings: tuple[Placing, ...],
    ) -> None:
        self._reconstruction = reconstruction
        self._source = prepare(reconstruction)
        deviations = _deviations(segmentation.run)
        identity = RunIdentity.of(self._source.series_instance_uid, segmentation.model, context, deviations)
        said = statements(context, segmentation.model, len(self._source.planes), reconstruction.notes, deviations)
        self._provenance = Provenance(identity, context, self._source, said)
        self._labels_zyx = segmentation.labels_zyx
        self._not_found = measurements.not_found
        self._placings = {placing.digest: placing for placing in placings}
        self.segments = present_segments(segmentation, measurements, identity)

    def made(self, variant: Variant) -> Iterator[EncodedResult]:
        """The objects of ``variant``, checked."""
        if isinstance(variant, SegmentationVariant):
            yield self._checked(variant.kind, self._segmentation(variant))
        elif isinstance(variant, ContoursVariant):
            yield self._checked(ResultKind.CONTOURS, self._contours(variant))
        elif isinstance(variant, PagesVariant):
            for content in self._pages(variant):
                yield self._checked(variant.kind, content)
        else:
            yield self._checked(ResultKind.REPORT, self._report(variant))

    def _segmentation(self, variant: SegmentationVariant) -> memoryview:
        segments, provenance = variant.selection.of(self.segments), variant.on(self._provenance)
        if variant.kind is ResultKind.SEGMENTATION:
            content = segmentation_file(self._labels_zyx, segments, provenance, variant.index)
            refuse_other_labels(content, self._labels_zyx, segments, self._source)
        else:
            content = labelmap_file(
                self._labels_zyx, segments, provenance, variant.index, background=variant.background
            )
            refuse_other_labelmap(content, self._labels_zyx, segments, self._source)
        return content

    def _contours(self, variant: ContoursVariant) -> memoryview:
        # loads scipy and contourpy, which a run without contours does not need
        from dicom_node.encode.rtstruct.check import refuse_other_contours  # noqa: PLC0415
        from dicom_node.encode.rtstruct.structure_set import contours_file  # noqa: PLC0415

        segments = variant.selection.of(self.segments)
        content = contours_file(self._labels_zyx, segments, variant.on(self._provenance))
        refuse_other_contours(content, self._labels_zyx, segments, self._source)
        return content

    def _pages(self, variant: PagesVariant) -> list[memoryview]:
        # loading matplotlib takes longer than encoding a run without pages
        from dicom_node.encode.pages.capture import capture_files, on_patient_axes  # noqa: PLC0415
        from dicom_node.encode.pages.document import document_file  # noqa: PLC0415
        from dicom_node.encode.pages.page import Page  # noqa: PLC0415

        patient = on_patient_axes(self._reconstruction, self._labels_zyx)
        segments = variant.selection.of(self._ranked(variant.percentiles))
        said = self._statement(variant.percentiles, segments)
        not_found = variant.selection.names(self._not_found)
        page = Page(patient, segments, not_found, variant.on(self._provenance), said)
        if variant.kind is ResultKind.CAPTURE:
            return capture_files(page, self._reconstruction, self._labels_zyx)
        return [document_file(page)]

    def _report(self, variant: ReportVariant) -> memoryview:
        provenance = variant.on(self._provenance, self.segments)
        found = self._findings(variant)
        if variant.percentiles:
            said = self._statement(variant.percentiles, tuple(finding.segment for finding in found))
            provenance = replace(provenance, statements=(*provenance.statements, said))
        not_found = variant.selection.names(self._not_found)
        content = report_file(found, not_found, provenance, ibsi_codes=variant.ibsi_codes)
        refuse_other_measurements(content, found)
        return content

    def _findings(self, variant: ReportVariant) -> tuple[Finding, ...]:
        segments = self._ranked(variant.percentiles)
        if not variant.shape:
            segments = tuple(map(without_shape, segments))
        if not variant.segmentations:
            return tuple(Finding(segment, None) for segment in variant.selection.of(segments))
        return tuple(
            Finding(segment, self._reference(segmentation))
            for segmentation in variant.segmentations
            for segment in segmentation.selection.of(segments)
        )

    def _ranked(self, percentiles: str) -> tuple[Segment, ...]:
        return self._placings[percentiles].ranked(self.segments) if percentiles else self.segments

    def _statement(self, percentiles: str, ranked: tuple[Segment, ...]) -> str:
        return self._placings[percentiles].statement(ranked) if percentiles else ""

    def _reference(self, variant: SegmentationVariant) -> SegmentationReference:
        kind, identity = variant.kind, variant.on(self._provenance).identity
        return SegmentationReference(
            _SOP_CLASSES[kind], identity.uid(f"{kind} instance"), identity.uid(f"{kind} series")
        )

    def _checked(self, kind: ResultKind, content: memoryview) -> EncodedResult:
        dataset = reread(content)
        refuse_other_identity(dataset, self._source)
        return encoded_result(kind, dataset, content)


def _deviations(run: RunReport | None) -> tuple[str, ...]:
    """What may have changed the labels against a regular run, each once."""
    if run is None:
        return ()
    return tuple(dict.fromkeys(note.text for note in run.notes if note.changes_answer))


def encoded_result(kind: ResultKind, dataset: Dataset, content: memoryview) -> EncodedResult:
    """``content`` with the UIDs of ``dataset``, which was read from it."""
    return EncodedResult(
        kind=kind,
        sop_class_uid=str(dataset.SOPClassUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        series_instance_uid=str(dataset.SeriesInstanceUID),
        transfer_syntax_uid=str(dataset.file_meta.TransferSyntaxUID),
        content=content,
    )
