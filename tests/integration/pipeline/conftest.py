"""A ledger and a spool for tests of one room at a time."""

from __future__ import annotations

import pytest
import structlog

from dicom_node.reading.reader import ImageReader
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool


@pytest.fixture(autouse=True)
def _every_line_is_logged():
    structlog.reset_defaults()  # an earlier test may have set the log level to warnings only


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


@pytest.fixture
def ledger(tmp_path, spool):
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3", spool)
    yield opened
    opened.close()


@pytest.fixture
def reader():
    with ImageReader() as opened:
        yield opened


@pytest.fixture
def result_files(tmp_path, spool):
    """The names of all files in the spool."""
    return lambda: sorted(path.name for path in (tmp_path / "spool").rglob("*") if path.is_file())
