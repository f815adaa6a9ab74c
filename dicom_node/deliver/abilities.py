"""What destinations accept: queried on a separate association and cached for a while; and what their viewers show."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import structlog
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SegmentationStorage

from dicom_node.deliver.scu import peer_of
from dicom_node.network.questions import LIMIT_S, Heard, Questions
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
    accepts: bool | None
    """None: there was no answer."""


class Abilities:
    """The answers of destinations; safe to use from several threads."""

    def __init__(self, our_ae: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._our_ae = our_ae
        self._clock = clock
        self._questions = Questions(self._negotiated, self._log_failure, clock)
        self._lock = threading.Lock()
        self._answers: dict[DestinationSettings, _Answer] = {}

    def accepts_labelmap(self, destination: DestinationSettings) -> bool:
        """Whether ``destination`` accepts label maps as we write them; False if it does not answer.

        An answer is valid for ten minutes. Only the first question to a destination is waited for, and ten seconds at
        most: one that was silent is asked again in the background, and gets what every destination accepts meanwhile.
        """
        known = self._known(destination)
        if known is not None and known.accepts is not None:
            return known.accepts
        reply = self._questions.reply(destination, _LABEL_MAP, LIMIT_S if known is None else 0.0)
        is_answer = reply.heard is Heard.ANSWER
        with self._lock:
            self._answers[destination] = _Answer(reply.at, reply.answer if is_answer else None)
        return bool(reply.answer)

    def want(self, destination: DestinationSettings) -> None:
        """Begin to ask ``destination`` unless its answer is known, without waiting."""
        known = self._known(destination)
        if known is None or known.accepts is None:
            self._questions.want(destination, _LABEL_MAP)

    def forget(self, destination: DestinationSettings) -> None:
        """Query ``destination`` again, because it refused what it had claimed to accept."""
        with self._lock:
            self._answers.pop(destination, None)

    def _known(self, destination: DestinationSettings) -> _Answer | None:
        """The last answer while it is valid, or that there was none; None if ``destination`` must be waited for."""
        with self._lock:
            known = self._answers.get(destination)
        is_outdated = known is not None and known.accepts is not None and self._clock() - known.at >= REMEMBERED_S
        return None if is_outdated else known

    def _negotiated(self, destination: DestinationSettings, wanted: tuple[str, str]) -> bool:
        peer = replace(peer_of(destination), whole_limit_s=LIMIT_S)
        with Association(peer, self._our_ae, (wanted, _SEGMENTATION)) as association:
            return association.accepts(*wanted)

    def _log_failure(self, destination: DestinationSettings, error: Exception) -> None:
        structlog.get_logger().warning(
            "destination.silent", ae_title=destination.ae_title, host=destination.host, error=type(error).__name__
        )
