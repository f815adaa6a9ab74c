"""The tables of the listener: what it speaks, who may, and how each fault is named on the wire.

The conformance statement is made from them (:mod:`dicom_node.conformance`).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from dicom_node.errors import InstanceRefused
from dicom_node.network.acceptor import Refused, Served
from dicom_node.network.dimse import SUCCESS, UNRECOGNISED_OPERATION
from dicom_node.network.pdu import (
    APPLICATION_CONTEXT_NOT_SUPPORTED,
    CALLED_AE_NOT_RECOGNISED,
    CALLING_AE_NOT_RECOGNISED,
    LOCAL_LIMIT_EXCEEDED,
    Rejection,
)
from dicom_node.standard.transfer_syntaxes import UNCOMPRESSED
from dicom_node.standard.uids import CT_SOP_CLASSES, VERIFICATION, is_well_formed_uid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dicom_node.receive.header import InstanceHeader
    from dicom_node.settings import SourceSettings

DUPLICATE_SOP_INSTANCE = 0x0111
INVALID_SOP_INSTANCE = 0x0117
SOP_CLASS_NOT_SUPPORTED = 0x0122
OUT_OF_RESOURCES = 0xA700
DATASET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
STATUSES: Mapping[int, tuple[str, str]] = {
    SUCCESS: ("Success", "file and folder are synced to disk and the ledger has committed the instance"),
    DUPLICATE_SOP_INSTANCE: (
        "Duplicate SOP Instance",
        "another image of the series, elsewhere or with other pixels, has this SOP Instance UID (PS3.7 C.5.7)",
    ),
    INVALID_SOP_INSTANCE: ("Invalid SOP Instance", "the Affected SOP Instance UID is not a UID"),
    SOP_CLASS_NOT_SUPPORTED: ("SOP Class Not Supported", "the Affected SOP Class UID is none of those accepted"),
    UNRECOGNISED_OPERATION: ("Unrecognized Operation", "any request but C-STORE and C-ECHO"),
    OUT_OF_RESOURCES: (
        "Out of Resources",
        "disk above its limit, spool or ledger not available, or a fault of the node: the instance may be sent again",
    ),
    DATASET_MISMATCH: (
        "Data Set does not match SOP Class",
        "SOP Class or Instance UID differ from what was announced, Study or Series Instance UID is missing or no UID",
    ),
    CANNOT_UNDERSTAND: ("Cannot Understand", "the data set is truncated or malformed, or there is none"),
}
"""Every status that the listener answers (PS3.7 annex C, PS3.4 B.2.3): its meaning, and when."""

REJECTIONS: Mapping[Rejection, str] = {
    APPLICATION_CONTEXT_NOT_SUPPORTED: "it is not DICOM's",
    CALLED_AE_NOT_RECOGNISED: "it is not that of the node",
    CALLING_AE_NOT_RECOGNISED: "it is not configured as a source, or comes from an address that it may not come from",
    LOCAL_LIMIT_EXCEEDED: "the largest number of associations is open",
}
"""Every rejection, and when."""


def admit(
    sources: Iterable[SourceSettings], our_ae: str, calling_ae: str, called_ae: str, address: str
) -> SourceSettings | Refused:
    """The configured source that asks, or why it is turned away. Nobody who is not configured gets in."""
    if called_ae.strip() != our_ae.strip():
        return Refused(CALLED_AE_NOT_RECOGNISED, "called AE title is not ours")
    for source in sources:
        if source.ae_title.strip() == calling_ae.strip():
            if _comes_from(source, address):
                return source
            return Refused(CALLING_AE_NOT_RECOGNISED, f"{source.ae_title} may not come from this address")
    return Refused(CALLING_AE_NOT_RECOGNISED, "calling AE title is not configured as a source")


def _comes_from(source: SourceSettings, address: str) -> bool:
    if not source.addresses:
        return True
    peer = ipaddress.ip_address(address)
    if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
        peer = peer.ipv4_mapped
    return any(peer in ipaddress.ip_network(network, strict=False) for network in source.addresses)


def served(source: SourceSettings, transfer_syntaxes: frozenset[str]) -> dict[str, Served]:
    """What ``source`` is served, by abstract syntax: it is SCU of all of it."""
    served: dict[str, Served] = {}
    if "echo" in source.services:
        served[VERIFICATION] = Served(frozenset(str(uid) for uid in UNCOMPRESSED))
    if "store" in source.services:
        served |= dict.fromkeys(CT_SOP_CLASSES, Served(transfer_syntaxes))
    return served


def check_announcement(context_sop_class: str, sop_class: str, sop_instance: str) -> None:
    """What the command set says, before a byte of the data set is kept.

    Raises:
        InstanceRefused: 0122, A900 or 0117.
    """
    if sop_class not in CT_SOP_CLASSES:
        raise InstanceRefused(SOP_CLASS_NOT_SUPPORTED, "SOP class not supported")
    if sop_class != context_sop_class:
        raise InstanceRefused(DATASET_MISMATCH, "SOP class is not that of the context")
    if not is_well_formed_uid(sop_instance):
        raise InstanceRefused(INVALID_SOP_INSTANCE, "Affected SOP Instance UID is not a UID")


def check_dataset(sop_class: str, sop_instance: str, header: InstanceHeader) -> None:
    """What the data set says must be what the command set said, and name its series and study.

    Raises:
        InstanceRefused: A900.
    """
    if header.sop_class_uid != sop_class:
        raise InstanceRefused(DATASET_MISMATCH, "SOP Class UID differs from the command set")
    if header.sop_instance_uid != sop_instance:
        raise InstanceRefused(DATASET_MISMATCH, "SOP Instance UID differs from the command set")
    if not is_well_formed_uid(header.series_instance_uid):
        raise InstanceRefused(DATASET_MISMATCH, "Series Instance UID missing or not a UID")
    if not is_well_formed_uid(header.study_instance_uid):
        raise InstanceRefused(DATASET_MISMATCH, "Study Instance UID missing or not a UID")
