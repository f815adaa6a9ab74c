"""Structured logs: JSON on stdout, one canonical line per job, no patient data by construction.

Callers may log UIDs, AE titles, counts, durations, states and our own reasons. ``_refuse_patient_fields`` drops every
key that names a patient attribute. Of a library's log record only the logger's name, the level and the source line are
kept, because pydicom and pynetdicom quote element values: pydicom's warnings contain the values they complain about,
and pynetdicom 3.0.4 logs the traceback of an exception in a handler and, by default, the identifiers of queries
(``_config.LOG_REQUEST_IDENTIFIERS``).
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from structlog.typing import Processor

_PATIENT_FIELDS = frozenset({"patient_name", "patient_id", "birth_date", "patient_sex", "accession_number"})


def configure_logging(process: str, file: TextIO | None = None, level: int = logging.INFO) -> None:
    """Write every line of this process to ``file`` (default: stdout) as JSON; each line names the ``process``.

    Libraries are heard from one level above ``level``, and each place in one warns once: pydicom warns of each image,
    and without the text one such line says all.
    """
    structlog.configure(
        processors=[
            _naming(process),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _refuse_patient_fields,
            structlog.processors.ExceptionRenderer(_exception_without_values),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(file or sys.stdout),
        cache_logger_on_first_use=True,
    )
    logging.captureWarnings(capture=True)  # pydicom's warnings quote element values
    root = logging.getLogger()
    of_libraries = logging.ERROR if level >= logging.WARNING else logging.WARNING
    root.handlers = [_LibraryWarnings(of_libraries)]  # the logger of pydicom has a level of its own
    root.setLevel(of_libraries)


class _Lines(structlog.WriteLogger):
    """Writes lines to a file. What can't be written is dropped: a full disk or a reader that is gone must end no work.

    Otherwise an association whose refusal could not be logged kept its place, and a sweep ended at its first warning.
    """

    def msg(self, message: str) -> None:
        """Write a line, if it can be written."""
        with suppress(OSError):
            super().msg(message)

    debug = info = warning = error = critical = msg


class _LibraryWarnings(logging.Handler):
    """Log that a library warned, and where; never the text, which may quote patient data."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._warned: set[tuple[str, str, int]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        place = (record.name, record.module, record.lineno)
        if place in self._warned and record.levelno < logging.ERROR:
            return
        self._warned.add(place)
        structlog.get_logger().warning(
            "library.warning",
            logger=record.name,
            level_name=record.levelname,
            source=f"{record.module}:{record.lineno}",
        )


def _naming(process: str) -> Processor:
    """Add the name of the process to each line.

    Not a context variable: a new thread starts with an empty context, and its lines would lack the name.
    """

    def add_process(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["process"] = process
        return event

    return add_process


def _refuse_patient_fields(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in _PATIENT_FIELDS & event.keys():
        del event[key]
    return event


def _exception_without_values(exc_info: Any) -> str:
    """Type and location of an unexpected exception, without its message, which may quote element values."""
    kind, _, traceback = exc_info
    locations = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        locations.append(f"{code.co_filename}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return f"{kind.__name__} at " + " < ".join(reversed(locations))
