"""What the DICOM results of files state beside the findings, and what their UIDs derive from."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from dicom_node.encode.identity import derived_uid
from dicom_node.types import ResultContext

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

_STATION_NAME = "dicom-node"
_DEVICE_UID = derived_uid("dicom-node segment", "device")
"""Files are segmented without a ledger and hence without the UID of an installation: all results name this device."""
_COMPLETION_REASON = "the segment command was given no other images of the series"


def context_of(content_digest: str, structures: Sequence[str], started_at: datetime, missing: int = 0) -> ResultContext:
    """The context of a run over files; ``structures`` are those that were asked for, none for all.

    Anything that changes the answer makes other UIDs, so that no archive takes two answers for one instance: the model
    by its identity, the input, the choice of structures and how many files could not be read (``missing``) by this
    digest.
    """
    if structures:
        chosen = json.dumps([content_digest, *structures])
        content_digest = hashlib.sha256(chosen.encode()).hexdigest()
    if missing:
        content_digest = hashlib.sha256(json.dumps([content_digest, missing]).encode()).hexdigest()
    return ResultContext(
        started_at=started_at,
        revision=1,
        content_digest=content_digest,
        station_name=_STATION_NAME,
        device_uid=_DEVICE_UID,
        completion_reason=_COMPLETION_REASON,
        refused_instances=missing,
    )
