"""The tables of the listener: what it accepts, from whom, and how it answers each fault.

The conformance statement is generated from them (:mod:`dicom_node.conformance`).
"""

from __future__ import annotations

import ipaddress
from functools import cache
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
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

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
        "another image of the series, elsewhere or with other pixels, has this SOP Instance UID (PS3.7 C.5.8)",
    ),
    INVALID_SOP_INSTANCE: ("Invalid SOP Instance", "the Affected SOP Instance UID is not a UID"),
    SOP_CLASS_NOT_SUPPORTED: ("SOP Class Not Supported", "the Affected SOP Class UID is not one of those accepted"),
    UNRECOGNISED_OPERATION: ("Unrecognized Operation", "any request other than C-STORE and C-ECHO"),
    OUT_OF_RESOURCES: (
        "Out of Resources",
        "the disk is too full, spool or ledger are unavailable, or the node failed; the instance may be sent again",
    ),
    DATASET_MISMATCH: (
        "Data Set does not match SOP Class",
        "SOP Class or SOP Instance UID differs from the one announced, or Study or Series Instance UID is not a UID",
    ),
    CANNOT_UNDERSTAND: ("Cannot Understand", "the data set is truncated, malformed or missing"),
}
"""Every status that the listener answers with (PS3.7 annex C, PS3.4 B.2.3): its meaning, and when it is used."""

REJECTIONS: Mapping[Rejection, str] = {
    APPLICATION_CONTEXT_NOT_SUPPORTED: "the application context is not that of DICOM",
    CALLED_AE_NOT_RECOGNISED: "the called AE title is not that of the node",
    CALLING_AE_NOT_RECOGNISED: (
        "the calling AE title is not a configured source, or not allowed from this address; sent before the request is"
        " read if no source may come from this address"
    ),
    LOCAL_LIMIT_EXCEEDED: "the maximum number of associations is open, of all, with this AE title or from this address",
}
"""Every rejection, and when it is used."""


def admit(
    sources: Iterable[SourceSettings], our_ae: str, calling_ae: str, called_ae: str, address: str
) -> SourceSettings | Refused:
    """The configured source that requests the association, or why it is rejected. Unknown peers are always rejected."""
    if called_ae.strip(" ") != our_ae.strip(" "):
        return Refused(CALLED_AE_NOT_RECOGNISED, "the called AE title is not that of this node")
    for source in sources:
        if source.ae_title.strip(" ") == calling_ae.strip(" "):
            if _comes_from(source, _address(address)):
                return source
            return Refused(CALLING_AE_NOT_RECOGNISED, f"{source.ae_title} is not allowed from this address")
    return Refused(CALLING_AE_NOT_RECOGNISED, "the calling AE title is not a configured source")


def may_connect(sources: Iterable[SourceSettings], address: str) -> bool:
    """Whether any source may come from ``address``."""
    peer = _address(address)
    return any(_comes_from(source, peer) for source in sources)


def _address(text: str) -> IPv4Address | IPv6Address:
    peer = ipaddress.ip_address(text)
    if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
        return peer.ipv4_mapped
    return peer


def _comes_from(source: SourceSettings, peer: IPv4Address | IPv6Address) -> bool:
    return not source.addresses or any(peer in _network(network) for network in source.addresses)


@cache
def _network(text: str) -> IPv4Network | IPv6Network:
    """Parsed once: every connection of a flood is compared with every network."""
    return ipaddress.ip_network(text, strict=False)


def served(source: SourceSettings, transfer_syntaxes: frozenset[str]) -> dict[str, Served]:
    """What ``source`` may use, by abstract syntax, always as SCU."""
    served: dict[str, Served] = {}
    if "echo" in source.services:
        served[VERIFICATION] = Served(frozenset(str(uid) for uid in UNCOMPRESSED))
    if "store" in source.services:
        served |= dict.fromkeys(CT_SOP_CLASSES, Served(transfer_syntaxes))
    return served


def check_announcement(context_sop_class: str, sop_class: str, sop_instance: str) -> None:
    """Check the command set, before any of the data set is kept.

    Raises:
        InstanceRefused: 0122, A900 or 0117.
    """
    if sop_class not in CT_SOP_CLASSES:
        raise InstanceRefused(SOP_CLASS_NOT_SUPPORTED, "SOP Class not supported")
    if sop_class != context_sop_class:
        raise InstanceRefused(DATASET_MISMATCH, "SOP Class UID differs from the presentation context")
    if not is_well_formed_uid(sop_instance):
        raise InstanceRefused(INVALID_SOP_INSTANCE, "Affected SOP Instance UID is not a UID")


def check_dataset(sop_class: str, sop_instance: str, header: InstanceHeader) -> None:
    """Check that the data set agrees with the command set and names its series and study.

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
