"""Queries the sender for the number of instances of a series: its own index is the best evidence available.

C-FIND, Study Root Query/Retrieve Information Model, SERIES level: Number of Series Related Instances (0020,1209), see
PS3.4 C.3.4 and C.6.2.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.network.dimse import PENDING
from dicom_node.network.questions import LIMIT_S, Questions
from dicom_node.network.requestor import Association, Peer
from dicom_node.standard.uids import STUDY_ROOT_FIND

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dicom_node.settings import SourceSettings

    Counts = Questions["SourceSettings", "CountQuestion", int]

CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 5.0
LARGEST_PDU_BYTES = 16384
MOST_ANSWERS = 1000
"""More series than any study has: a peer that sends more ignores the query."""
MOST_INSTANCES = 2**31 - 1
"""The largest number that the VR of the count (IS) can state (PS3.5 6.2)."""


class CountQuestion(NamedTuple):
    """How many instances has the series? ``version`` is that of the revision: the answer may change with it."""

    study_instance_uid: str
    series_instance_uid: str
    version: int


def counts(our_ae: str) -> Counts:
    """The questions to all sources, under our AE title ``our_ae``."""

    def ask(source: SourceSettings, question: CountQuestion) -> int | None:
        return expected_count(source, our_ae, question.study_instance_uid, question.series_instance_uid)

    def log(source: SourceSettings, error: Exception) -> None:
        structlog.get_logger().warning("count.failed", source=source.ae_title, error=type(error).__name__)

    return Questions(ask, log)


def expected_count(source: SourceSettings, our_ae: str, study_uid: str, series_uid: str) -> int | None:
    """The count in the index of ``source``; None if it can't be queried or its index does not have the series.

    A count of 0 is no answer: the series is not in the index yet.

    Raises:
        NetworkError: the source is away, silent, or does not offer the service.
        Exception: pydicom may raise anything for what the source says in place of a number; ValueError: it is no
            number of instances.
    """
    if source.count_host is None:
        return None
    peer = Peer(
        ae_title=source.count_ae_title or source.ae_title,
        host=source.count_host,
        port=source.count_port,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        response_timeout_s=ANSWER_TIMEOUT_S,
        largest_pdu_bytes=LARGEST_PDU_BYTES,
        whole_limit_s=LIMIT_S,
    )
    with Association(peer, our_ae, [(STUDY_ROOT_FIND, str(ExplicitVRLittleEndian))]) as association:
        answers = association.find(STUDY_ROOT_FIND, query_identifier(study_uid, series_uid))
        found = [count for count in _counts(answers, series_uid) if count is not None]
    return found[0] or None if len(found) == 1 else None


def _counts(answers: Iterator[tuple[int, Dataset | None]], series_uid: str) -> Iterator[int | None]:
    for number, (status, identifier) in enumerate(answers, start=1):
        if number > MOST_ANSWERS:
            raise ValueError(f"more than {MOST_ANSWERS} answers")
        if status in PENDING and identifier is not None and identifier.get("SeriesInstanceUID") == series_uid:
            count = identifier.get("NumberOfSeriesRelatedInstances")
            yield None if count is None else _whole_number(count)


def _whole_number(count: Any) -> int:
    number = int(count)
    if number != count or not 0 <= number <= MOST_INSTANCES:
        raise ValueError(f"expected a whole number from 0 to {MOST_INSTANCES}")
    return number


def query_identifier(study_uid: str, series_uid: str) -> Dataset:
    """The identifier of the query: matching keys and return keys."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES"
    identifier.StudyInstanceUID = study_uid
    identifier.SeriesInstanceUID = series_uid
    identifier.NumberOfSeriesRelatedInstances = None
    return identifier
