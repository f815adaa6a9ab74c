"""What a case gives to production code that it runs in its own process."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder in memory, if there is one: what a disk keeps is not asked for."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@contextmanager
def without_log() -> Iterator[None]:
    """Nothing is logged during the block."""

    def drop(*_: object) -> Any:
        raise structlog.DropEvent

    known = structlog.get_config()
    structlog.configure(processors=[drop], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**known)
