"""A ledger and a spool for one room at a time."""

from __future__ import annotations

import pytest
import structlog

from dicom_node.reading.reader import ImageReader
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool


@pytest.fixture(autouse=True)
def _every_line_is_logged():
    structlog.reset_defaults()  # a test that ran before may have left out what is no warning


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
    """The names of all files that the spool holds."""
    return lambda: sorted(path.name for path in (tmp_path / "spool").rglob("*") if path.is_file())
