"""The whole statement, in the order and with the numbers of the template of PS3.2 annex A."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dicom_node import __version__
from dicom_node.conformance import annexes, network
from dicom_node.conformance.created import CreatedObject, created_objects, sop_class_name
from dicom_node.conformance.markdown import document, table
from dicom_node.encode.provenance import MANUFACTURER, MODEL_NAME
from dicom_node.settings import Settings
from dicom_node.standard.uids import CT_SOP_CLASSES, STUDY_ROOT_FIND, VERIFICATION

if TYPE_CHECKING:
    from collections.abc import Sequence

_CONTENTS = "2 Table of contents"
_COVER = f"""
> **Research software. Not a medical device, not cleared for clinical use by anybody.**

Product: {MODEL_NAME}, version {__version__}. Manufacturer: {MANUFACTURER}.

Written by `dicom-node conformance` from the tables of the code and from objects that its encoder made; a test keeps the
two equal. Don't edit it.
"""
_REVISION_HISTORY = """
The statement belongs to the version of the software on its first page and has no versions of its own; what changed
between versions is in [CHANGELOG.md](../../CHANGELOG.md).
"""
_AUDIENCE = """
For those who connect the node with archives and viewers. They are expected to know DICOM.
"""
_REMARKS = """
- The order and the numbers of the sections are those of the template in PS3.2 annex A (edition 2020c). Editions since
  2024 have a newer template (annex N), which orders the same facts in another way; this document does not follow it.
- The statement tells what the software does, not that it works with a particular product. Connecting two products needs
  a test of the two.
- What it says on an attribute of a created object (section 9.1) was read off objects that the encoder made of synthetic
  series which differ in one condition at a time; types and modules are those of PS3.3 in the tables of highdicom.
- **IHE**: this is no IHE integration statement, and no profile is claimed. SEG and SR hold what AI Results (AIR) asks
  of the content of results, line by line in [results.md](../users/results.md). Storage Commitment is not implemented,
  and conformance with the transactions and options of the profile has not been examined.
"""
_TERMS = """
Terms are those of the DICOM standard: Application Entity (AE), association, presentation context, SOP Class, SOP
Instance, Service Class User (SCU) and Provider (SCP), transfer syntax. A *series revision* is the set of instances
that the node took as the whole series; a *run* is one model on one series revision.
"""
_BASICS = """
Two applications agree on an association: who they are and which presentation contexts (a SOP Class and its transfer
syntaxes) they speak. Over it the SCU of a service sends requests that the SCP answers with a status. PS3.7, PS3.8.
"""
_ABBREVIATIONS = (
    ("AE", "Application Entity"),
    ("CT", "Computed Tomography"),
    ("HU", "Hounsfield unit"),
    ("IOD", "Information Object Definition"),
    ("PDU", "Protocol Data Unit"),
    ("SCP, SCU", "Service Class Provider, User"),
    ("SEG", "Segmentation"),
    ("SOP", "Service-Object Pair"),
    ("SR", "Structured Report"),
    ("TID, CID", "Template, Context Group of PS3.16"),
    ("VR", "Value Representation"),
)
_REFERENCES = """
NEMA PS3 / ISO 12052, Digital Imaging and Communications in Medicine (DICOM) Standard. IHE Radiology, AI Results.
"""


def conformance_statement(settings: Settings | None = None) -> str:
    """The statement in Markdown: of the node that ``settings`` configure, without them of the product by default."""
    created, effective = created_objects(), settings or Settings()
    sections = [
        ("1 Conformance statement overview", _overview(created)),
        (_CONTENTS, ""),
        ("3 Introduction", ""),
        ("3.1 Revision history", _REVISION_HISTORY),
        ("3.2 Audience", _AUDIENCE),
        ("3.3 Remarks", _REMARKS),
        ("3.4 Terms and definitions", _TERMS),
        ("3.5 Basics of DICOM communication", _BASICS),
        ("3.6 Abbreviations", table(("abbreviation", "meaning"), _ABBREVIATIONS)),
        ("3.7 References", _REFERENCES),
        *network.sections(created, effective, is_configured=settings is not None),
        *annexes.sections(created),
    ]
    return document("DICOM Conformance Statement", f"{_COVER}{_whose(settings)}", sections, _CONTENTS)


def facts(settings: Settings | None = None) -> dict[str, Any]:
    """The tables of the statement for programs."""
    created = created_objects()
    return {
        "product": MODEL_NAME,
        "version": __version__,
        **network.facts(created, settings or Settings()),
        "created": annexes.facts(created),
    }


def _whose(settings: Settings | None) -> str:
    if settings is None:
        return "\nValues that can be configured are stated by their defaults.\n"
    return f"\nValues are those configured for {settings.node.ae_title} (station {settings.node.station_name}).\n"


def _overview(created: Sequence[CreatedObject]) -> str:
    sent = dict.fromkeys(each.sop_class_uid for each in created)
    rows = [
        (
            "Transfer",
            sop_class_name(uid),
            uid,
            "yes" if uid in sent else "no",
            "yes" if uid in CT_SOP_CLASSES else "no",
        )
        for uid in (*sorted(CT_SOP_CLASSES), *sent)
    ]
    rows.append(("Query/Retrieve", sop_class_name(STUDY_ROOT_FIND), STUDY_ROOT_FIND, "yes", "no"))
    rows.append(("Verification", sop_class_name(VERIFICATION), VERIFICATION, "yes", "yes"))
    services = table(("service", "SOP Class", "UID", "user (SCU)", "provider (SCP)"), rows)
    return f"""
The node receives CT series by C-STORE, decides by rules which model segments them, and sends the results by C-STORE
into the study that they belong to: segmentations, a measurement report and, where asked for, a structure set,
secondary captures, a PDF, or a notice why a series was not processed. It can ask the sender by C-FIND how many
instances a series has.

Table 1-1: network services

{services}

Media services: none.
"""
