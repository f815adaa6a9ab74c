"""The images that senders have: small CT slices in versions, as the bytes of their data sets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_node.network.acceptor import AcceptedContext
from dicom_node.network.dimse import C_STORE_RQ, CommandSet, Element
from dicom_node.network.pdu import Roles
from tests.support.raw_series import ROOT, changed, encoded, plane_elements

CONTEXT = AcceptedContext(CTImageStorage, ExplicitVRLittleEndian, Roles())
_NAMES = ("First", "Second", "Third")


@dataclass(frozen=True, slots=True)
class Image:
    """Slice ``number`` of a series: ``name`` of its patient and ``pixels`` are what a later version may change."""

    series: int
    number: int
    name: int = 0
    pixels: int = 0

    @property
    def series_uid(self) -> str:
        return f"{ROOT}.7.{self.series}"

    @property
    def uid(self) -> str:
        return f"{self.series_uid}.{self.number + 1}"

    @property
    def key(self) -> tuple[str, str]:
        """By which the ledger knows it, whatever its version."""
        return self.series_uid, self.uid

    @property
    def data_set(self) -> bytes:
        return _data_set(self)

    @property
    def sha256(self) -> str:
        return _sha256(self)

    @property
    def command(self) -> CommandSet:
        """The C-STORE request."""
        return CommandSet.of(
            {
                Element.AFFECTED_SOP_CLASS_UID: CTImageStorage,
                Element.COMMAND_FIELD: C_STORE_RQ,
                Element.AFFECTED_SOP_INSTANCE_UID: self.uid,
            }
        )


@lru_cache(maxsize=4096)
def _data_set(image: Image) -> bytes:
    elements = plane_elements(image.number)
    changes: dict[str | int, Any] = {
        "SOPInstanceUID": image.uid.encode(),
        "SeriesInstanceUID": image.series_uid.encode(),
        "StudyInstanceUID": f"{ROOT}.6".encode(),
        "PatientName": _NAMES[image.name % len(_NAMES)].encode(),
        "InstanceNumber": str(image.number + 1).encode(),
    }
    if image.pixels:
        changes["PixelData"] = (b"OW", bytes([image.pixels, 4]) * 42)
    return encoded(changed(elements, changes))


@lru_cache(maxsize=4096)
def _sha256(image: Image) -> str:
    return hashlib.sha256(image.data_set).hexdigest()
