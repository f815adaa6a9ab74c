"""How many instances does the sender think the series has? Its own index is the best evidence there is.

C-FIND, Study Root Query/Retrieve Information Model, SERIES level: Number of Series Related Instances (0020,1209), see
PS3.4 C.3.4 and C.6.2.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from dicom_node.standard.implementation import IMPLEMENTATION_CLASS_UID, VERSION_NAME

if TYPE_CHECKING:
    from dicom_node.settings import SourceSettings

CONNECT_TIMEOUT_S = 3.0
ANSWER_TIMEOUT_S = 5.0
PENDING = (0xFF00, 0xFF01)


def expected_count(source: SourceSettings, our_ae: str, study_uid: str, series_uid: str) -> int | None:
    """The count by the index of ``source``; None if it was not asked or gave no answer. Never raises for the peer.

    A count of 0 is no answer: the index has not seen the series yet.
    """
    if source.count_host is None:
        return None
    try:
        count = _ask(source, our_ae, study_uid, series_uid)
    except Exception as error:  # noqa: BLE001 - whatever a peer's answer does, the series waits for the clock instead
        structlog.get_logger().warning("count.failed", source=source.ae_title, error=type(error).__name__)
        return None
    return count if count is not None and count > 0 else None


def _ask(source: SourceSettings, our_ae: str, study_uid: str, series_uid: str) -> int | None:
    # identifiers and answers would go into pynetdicom's log otherwise
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
    entity = AE(ae_title=our_ae)
    entity.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    entity.implementation_version_name = VERSION_NAME
    entity.connection_timeout = CONNECT_TIMEOUT_S
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = ANSWER_TIMEOUT_S
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    association = entity.associate(
        source.count_host or "", source.count_port, ae_title=source.count_ae_title or source.ae_title
    )
    if not association.is_established:
        return None
    try:
        answers = association.send_c_find(
            query_identifier(study_uid, series_uid), StudyRootQueryRetrieveInformationModelFind
        )
        counts = [
            int(identifier.NumberOfSeriesRelatedInstances)
            for status, identifier in answers
            if "Status" in status
            and status.Status in PENDING
            and identifier is not None
            and identifier.get("SeriesInstanceUID") == series_uid
            and identifier.get("NumberOfSeriesRelatedInstances") is not None
        ]
    finally:
        if association.is_established:
            association.release()
    return counts[0] if len(counts) == 1 else None


def query_identifier(study_uid: str, series_uid: str) -> Dataset:
    """The identifier of the query: its keys, and what is asked for."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES"
    identifier.StudyInstanceUID = study_uid
    identifier.SeriesInstanceUID = series_uid
    identifier.NumberOfSeriesRelatedInstances = None
    return identifier
