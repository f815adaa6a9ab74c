"""What destinations accept: queried on a separate association and cached for a while; and what their viewers show."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SegmentationStorage

from dicom_node.deliver.scu import peer_of
from dicom_node.errors import NetworkError
from dicom_node.network.requestor import Association
from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicom_node.settings import DestinationSettings

REMEMBERED_S = 600.0
_LABEL_MAP = (LABEL_MAP_SEGMENTATION_STORAGE, str(RLELossless))
_SEGMENTATION = (str(SegmentationStorage), str(ExplicitVRLittleEndian))


def shows_binary(destination: DestinationSettings, columns: int) -> bool:
    """Whether the viewer of ``destination`` shows a BINARY SEG on images with this many ``columns``.

    The DICOMweb plugin 1.7 of Orthanc 1.10.1 serves frames of one bit per pixel only if every row ends on a byte; the
    number of rows doesn't matter. This can't be learned at negotiation: the Implementation Version Name of Orthanc is
    that of DCMTK.
    """
    return destination.viewer != "ohif_on_orthanc" or columns % 8 == 0


class _Answer(NamedTuple):
    at: float
    accepts: bool


class Abilities:
    """The answers of destinations; safe to use from several threads."""

    def __init__(self, our_ae: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._our_ae = our_ae
        self._clock = clock
        self._lock = threading.Lock()
        self._answers: dict[DestinationSettings, _Answer] = {}

    def accepts_labelmap(self, destination: DestinationSettings) -> bool:
        """Whether ``destination`` accepts label maps as we write them; False if it does not answer.

        An answer is valid for ten minutes; a missing answer is not cached.
        """
        with self._lock:
            known = self._answers.get(destination)
        if known is not None and self._clock() - known.at < REMEMBERED_S:
            return known.accepts
        try:
            with Association(peer_of(destination), self._our_ae, (_LABEL_MAP, _SEGMENTATION)) as association:
                answer = association.accepts(*_LABEL_MAP)
        except NetworkError:
            return False
        with self._lock:
            self._answers[destination] = _Answer(self._clock(), answer)
        return answer

    def forget(self, destination: DestinationSettings) -> None:
        """Query ``destination`` again, because it refused what it had claimed to accept."""
        with self._lock:
            self._answers.pop(destination, None)
