"""The report pages as Encapsulated PDF (PS3.3 A.45.1), for archives that show documents."""

from __future__ import annotations

from highdicom.base import SOPClass
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from dicom_node.encode import tags
from dicom_node.encode.pages.page import Page, pages_as_pdf
from dicom_node.encode.pages.sheet import TITLE
from dicom_node.encode.provenance import MANUFACTURER, MODEL_NAME, series_number, stamp
from dicom_node.encode.references import references
from dicom_node.standard.part10 import file_of, rewritten
from dicom_node.types import ResultKind


def document_file(page: Page) -> memoryview:
    """``page`` as a Part 10 file."""
    provenance = page.provenance
    source, identity = provenance.source, provenance.identity
    dataset = SOPClass(
        study_instance_uid=source.study_instance_uid,
        series_instance_uid=identity.uid(f"{ResultKind.DOCUMENT} series"),
        series_number=series_number(provenance, ResultKind.DOCUMENT),
        sop_instance_uid=identity.uid(f"{ResultKind.DOCUMENT} instance"),
        sop_class_uid=EncapsulatedPDFStorage,
        instance_number=1,
        modality="DOC",
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    stamp(dataset, provenance, "report")
    started_at = provenance.started_at
    dataset.AcquisitionDateTime = f"{started_at:%Y%m%d%H%M%S.%f}"
    dataset.ConversionType = "WSD"
    dataset.BurnedInAnnotation = "YES"  # name and ID are on every page
    dataset.DocumentTitle = TITLE
    dataset.ConceptNameCodeSequence = []
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document = pages_as_pdf(page)
    dataset.EncapsulatedDocumentLength = len(document)
    dataset.EncapsulatedDocument = document + bytes(len(document) % 2)
    content = memoryview(file_of(dataset))
    return memoryview(rewritten(content, {tags.SOURCE_INSTANCE: references(tags.SOURCE_INSTANCE, source)}))
