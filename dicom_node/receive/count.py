"""Queries the sender for the number of instances of a series: its own index is the best evidence available.

C-FIND, Study Root Query/Retrieve Information Model, SERIES level: Number of Series Related Instances (0020,1209), see
PS3.4 C.3.4 and C.6.2.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.network.dimse import PENDING
from dicom_node.network.requestor import Association, Peer
from dicom_node.standard.uids import STUDY_ROOT_FIND

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dicom_node.settings import SourceSettings

CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 5.0
LARGEST_PDU_BYTES = 16384
MOST_ANSWERS = 1000
"""More series than any study has: a peer that sends more ignores the query."""


def expected_count(source: SourceSettings, our_ae: str, study_uid: str, series_uid: str) -> int | None:
    """The count in the index of ``source``; None if it can't be queried or does not answer. Never raises.

    A count of 0 is no answer: the series is not in the index yet.
    """
    if source.count_host is None:
        return None
    try:
        count = _ask(source, our_ae, study_uid, series_uid)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong, the series completes by its quiet time instead
        structlog.get_logger().warning("count.failed", source=source.ae_title, error=type(error).__name__)
        return None
    return count if count is not None and count > 0 else None


def _ask(source: SourceSettings, our_ae: str, study_uid: str, series_uid: str) -> int | None:
    peer = Peer(
        ae_title=source.count_ae_title or source.ae_title,
        host=source.count_host or "",
        port=source.count_port,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        response_timeout_s=ANSWER_TIMEOUT_S,
        largest_pdu_bytes=LARGEST_PDU_BYTES,
    )
    with Association(peer, our_ae, [(STUDY_ROOT_FIND, str(ExplicitVRLittleEndian))]) as association:
        answers = association.find(STUDY_ROOT_FIND, query_identifier(study_uid, series_uid))
        counts = [count for count in _counts(answers, series_uid) if count is not None]
    return counts[0] if len(counts) == 1 else None


def _counts(answers: Iterator[tuple[int, Dataset | None]], series_uid: str) -> Iterator[int | None]:
    for number, (status, identifier) in enumerate(answers, start=1):
        if number > MOST_ANSWERS:
            raise ValueError(f"more than {MOST_ANSWERS} answers")
        if status in PENDING and identifier is not None and identifier.get("SeriesInstanceUID") == series_uid:
            count = identifier.get("NumberOfSeriesRelatedInstances")
            yield None if count is None else int(count)


def query_identifier(study_uid: str, series_uid: str) -> Dataset:
    """The identifier of the query: matching keys and return keys."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES"
    identifier.StudyInstanceUID = study_uid
    identifier.SeriesInstanceUID = series_uid
    identifier.NumberOfSeriesRelatedInstances = None
    return identifier
