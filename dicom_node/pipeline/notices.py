"""Notices: tell destinations that request it why a series has no results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from dicom_node.encode.run import encode_notice
from dicom_node.errors import StoreFull
from dicom_node.store.clock import now_utc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydicom import Dataset

    from dicom_node.pipeline.results import ResultStore, StoredResults
    from dicom_node.reading.reader import ImageReader
    from dicom_node.store.revisions import CompleteRevision
    from dicom_node.store.spool import Spool
    from dicom_node.types import ResultRequest


class Notices:
    """Writes notices into the spool; the caller records them in the ledger or discards them."""

    def __init__(self, spool: Spool, reader: ImageReader, results: ResultStore) -> None:
        self._spool = spool
        self._reader = reader
        self._results = results

    def write(
        self, revision: CompleteRevision, model: str | None, reason: str, requests: Mapping[str, ResultRequest]
    ) -> StoredResults:
        """Write the requested notices that ``revision`` was not processed by ``model`` (None: refused by a rule).

        Returns none if they can't be made: the job ends regardless, and the reason is logged.

        Raises:
            StoreFull: there is no space for them.
        """
        wanted = tuple(name for name, request in requests.items() if request.notice)
        if not wanted:
            return []
        try:
            context = self._results.context(revision, model, now_utc())
            headers = self._headers(revision)
            return self._spool.write_results(encode_notice(headers, model, reason, context, wanted))
        except StoreFull:
            raise
        except Exception as error:  # noqa: BLE001 - see above
            structlog.get_logger().warning(
                "notice.not_written",
                series=revision.series_instance_uid,
                revision=revision.revision,
                model=model,
                error=type(error).__name__,
            )
            return []

    def _headers(self, revision: CompleteRevision) -> list[Dataset]:
        """The headers of the images, without those whose stored bytes changed."""
        changed = set(self._spool.changed(revision.files))
        names = [name for name in revision.spool_names if name not in changed]
        return [instance.header for instance in self._reader.read([self._spool.path(name) for name in names])]
