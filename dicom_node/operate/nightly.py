"""The check of the ledger that the work process makes once a day."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from dicom_node.errors import Stopping

if TYPE_CHECKING:
    from collections.abc import Callable

    from dicom_node.operate.ledger_check import LedgerReport

_MOST_IN_THE_LOG = 10


def local_now() -> datetime:
    """The time of the machine's time zone."""
    return datetime.now(UTC).astimezone()


class Nightly:
    """Checks the ledger at the first look after ``at`` ("HH:MM", local time) of each day, however late that is; not at
    once after a start. A check that could not be made, because the ledger was away, is made at the next look.

    ``check`` checks it; ``tell`` gets the report after it was logged.
    """

    def __init__(
        self,
        at: str,
        check: Callable[[], LedgerReport],
        tell: Callable[[LedgerReport], None],
        clock: Callable[[], datetime] = local_now,
    ) -> None:
        self._at = at
        self._check = check
        self._tell = tell
        self._clock = clock
        self._done = self._last_turn()
        self._log = structlog.get_logger()

    def check_due(self) -> None:
        """Check the ledger if it is time to."""
        turn = self._last_turn()
        if turn == self._done:
            return
        try:
            report = self._check()
        except Stopping:
            return
        facts = {"seconds": report.seconds, "files": report.files, "counted": dict(report.counted)}
        if report.is_sound:
            self._log.info("ledger.checked", **facts)
        else:
            some = [f"{each.kind}: {each.subject}: {each.detail}" for each in report.examples[:_MOST_IN_THE_LOG]]
            self._log.error("ledger.violated", violations=dict(report.violations), examples=some, **facts)
        self._tell(report)
        self._done = turn

    def _last_turn(self) -> date:
        """The last day whose time for the check has come."""
        now = self._clock()
        return now.date() if f"{now:%H:%M}" >= self._at else now.date() - timedelta(days=1)
