"""What destinations say that they accept, asked on an association of its own and remembered for a while."""

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


class _Answer(NamedTuple):
    at: float
    accepts: bool


class Abilities:
    """Answers of destinations; may be asked by several threads."""

    def __init__(self, our_ae: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._our_ae = our_ae
        self._clock = clock
        self._lock = threading.Lock()
        self._answers: dict[DestinationSettings, _Answer] = {}

    def accepts_labelmap(self, destination: DestinationSettings) -> bool:
        """Whether ``destination`` accepts label maps as we write them; not when it can't be asked.

        An answer is good for ten minutes. That there was none is not remembered.
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
        """``destination`` refused what it had said that it accepts: it is asked anew."""
        with self._lock:
            self._answers.pop(destination, None)
