"""Notices: destinations that ask for it are told why a series came to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from dicom_node.encode.run import encode_notice
from dicom_node.pipeline.results import read_series
from dicom_node.store.clock import now_utc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dicom_node.pipeline.results import ResultStore, StoredResults
    from dicom_node.store.revisions import CompleteRevision
    from dicom_node.store.spool import Spool
    from dicom_node.types import ResultRequest


class Notices:
    """Writes notices into the spool; whoever asked for them records them in the ledger, or discards them."""

    def __init__(self, spool: Spool, results: ResultStore) -> None:
        self._spool = spool
        self._results = results

    def write(
        self, revision: CompleteRevision, model: str | None, reason: str, requests: Mapping[str, ResultRequest]
    ) -> StoredResults:
        """The notices that ``requests`` ask for: ``revision`` was not processed by ``model`` (None: a rule refuses it).

        Nothing where none can be written: the job has ended all the same, and the log says why nobody was told.
        """
        wanted = tuple(name for name, request in requests.items() if request.notice)
        if not wanted:
            return []
        try:
            context = self._results.context(revision, model, now_utc())
            headers = [instance.header for instance in read_series(self._spool, revision).instances]
            return self._spool.write_results(encode_notice(headers, model, reason, context, wanted))
        except Exception as error:  # noqa: BLE001 - see above
            structlog.get_logger().warning(
                "notice.not_written",
                series=revision.series_instance_uid,
                revision=revision.revision,
                model=model,
                error=type(error).__name__,
            )
            return []
