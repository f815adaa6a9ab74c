"""A destination of a node: a real Storage SCP (pynetdicom) that keeps what it is sent, and behaves as it is told."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

STORED = 0x0000
CLASSES = (
    SegmentationStorage,
    LABEL_MAP_SEGMENTATION_STORAGE,
    EnhancedSRStorage,
    ComprehensiveSRStorage,
    Comprehensive3DSRStorage,
)
SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless)
_HOST = "127.0.0.1"


class Archive:
    """What was stored, by SOP Instance UID, however often it arrived and from however many servers."""

    def __init__(self) -> None:
        self.digests: dict[str, set[str]] = defaultdict(set)
        """SHA-256 of the data sets."""
        self.times: Counter[str] = Counter()
        self._lock = threading.Lock()

    def keep(self, event: Any) -> int:
        """Store the instance of a C-STORE."""
        digest = hashlib.sha256(event.encoded_dataset(include_meta=False)).hexdigest()
        with self._lock:
            self.digests[str(event.request.AffectedSOPInstanceUID)].add(digest)
            self.times[str(event.request.AffectedSOPInstanceUID)] += 1
        return STORED

    @contextmanager
    def serving(
        self,
        port: int = 0,
        answer: Callable[[Any], int] | None = None,
        classes: Sequence[str] = CLASSES,
        syntaxes: Sequence[str] = SYNTAXES,
    ) -> Iterator[int]:
        """Serve on a port (0: any), which it gives; ``answer`` takes the place of :meth:`keep`."""
        entity = AE("ARCHIVE")
        for sop_class in (Verification, *classes):
            entity.add_supported_context(sop_class, list(syntaxes))
        entity.maximum_associations = 100
        handlers = [(evt.EVT_C_STORE, answer or self.keep)]
        server = entity.start_server((_HOST, port), block=False, evt_handlers=handlers)
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
