"""The data set: everything written is read back exactly once, whenever a process was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import date

import pyarrow.dataset
import pytest

from dicom_node import __version__
from dicom_node.cohort.pseudonym import Pseudonyms
from dicom_node.cohort.subject import Dates, SeriesFacts
from dicom_node.cohort.table import (
    SCHEMA,
    CohortTable,
    Origin,
    read_rows,
    read_without_rows,
    rows_of,
)
from dicom_node.errors import ConfigurationError, StoreUnavailable
from inference.measure import measure
from tests.support.analysis_results import MODEL, geometry, reconstruction, segmentation

PSEUDONYMS = Pseudonyms.of_key(bytes(range(32)))
SERIES, OTHER = PSEUDONYMS.uid("1.2.3"), PSEUDONYMS.uid("1.2.4")


def facts(series=SERIES):
    return SeriesFacts(
        PSEUDONYMS.patient("1", "", "1.2"),
        PSEUDONYMS.uid("1.2"),
        series,
        *(61.0, "M", "SIEMENS", "Force", "Br40", False, 1.5, 100.0, date(2019, 5, 4)),
    )


def measured():
    labels = segmentation(geometry(), {3: "kidney_left", 200: "liver"})
    return measure(reconstruction().source, labels)


@pytest.fixture
def table(tmp_path):
    made = CohortTable(tmp_path / "out")
    made.open_for(PSEUDONYMS, Dates.SHIFTED)
    return made


def test_every_measurement_is_read_back_with_the_facts_of_its_series(table):
    measurements = measured()
    table.write(SERIES, facts(), rows_of(measurements, MODEL), Origin.COMPUTED)
    rows = read_rows(table.folder)
    assert rows.schema == SCHEMA
    for row, structure in zip(rows.to_pylist(), measurements.structures, strict=True):
        assert row == {
            "pseudonym": facts().pseudonym,
            "study": facts().study,
            "series": SERIES,
            "model": MODEL.name,
            "model_version": MODEL.version,
            "model_digest": MODEL.digest,
            "structure": structure.name,
            "volume_ml": structure.volume_ml,
            "mean_hu": structure.mean_hu,
            "sd_hu": structure.sd_hu,
            "median_hu": structure.median_hu,
            "minimum_hu": structure.min_hu,
            "maximum_hu": structure.max_hu,
            "truncated": structure.truncated,
            "age_years": 61.0,
            "sex": "M",
            "manufacturer": "SIEMENS",
            "scanner_model": "Force",
            "kernel": "Br40",
            "contrast": False,
            "slice_thickness_mm": 1.5,
            "kvp": 100.0,
            "study_date": date(2019, 5, 4),
            "origin": "computed",
            "node_version": __version__,
        }


def test_any_parquet_reader_gets_one_table(table):
    for series in (SERIES, OTHER):
        table.write(series, facts(series), rows_of(measured(), MODEL), Origin.COMPUTED)
    seen = pyarrow.dataset.dataset(table.folder / "measurements", format="parquet").to_table()
    assert seen.schema == SCHEMA
    assert set(seen["series"].to_pylist()) == {SERIES, OTHER}


def test_series_written_again_replaces_its_rows(table):
    rows = rows_of(measured(), MODEL)
    table.write(SERIES, facts(), rows, Origin.COMPUTED)
    table.write(SERIES, facts(), rows[:1], Origin.COMPUTED)
    assert read_rows(table.folder)["structure"].to_pylist() == [rows[0].structure]


def test_series_without_rows_is_listed_until_it_has_some(table):
    reason = "4 slices; the model needs at least 5"
    table.write_reason(SERIES, facts().study, SERIES, Origin.COMPUTED, "refused", reason)
    assert read_rows(table.folder).num_rows == 0
    (listed,) = read_without_rows(table.folder).to_pylist()
    assert (listed["series"], listed["outcome"], listed["reason"]) == (SERIES, "refused", reason)
    before = (table.folder / "without_rows" / f"{SERIES}.parquet").read_bytes()
    table.write(SERIES, facts(), rows_of(measured(), MODEL), Origin.COMPUTED)
    assert read_without_rows(table.folder).num_rows == 0
    # killed between writing the rows and removing the reason
    (table.folder / "without_rows" / f"{SERIES}.parquet").write_bytes(before)
    assert read_without_rows(table.folder).num_rows == 0


def test_rows_under_another_key_are_refused(table):
    table.open_for(PSEUDONYMS, Dates.SHIFTED)
    with pytest.raises(ConfigurationError, match="another pseudonym key"):
        table.open_for(Pseudonyms.of_key(bytes(range(32, 64))), Dates.SHIFTED)
    with pytest.raises(ConfigurationError, match="other dates"):
        table.open_for(PSEUDONYMS, Dates.EXACT)


@pytest.mark.parametrize("part", ["", "../x", "1.2.840.113619", "Meier", SERIES.upper()])
def test_part_files_are_named_by_pseudonyms_only(table, part):
    with pytest.raises(ConfigurationError, match="pseudonym"):
        table.write(part, facts(), (), Origin.COMPUTED)


def test_folder_that_is_not_a_data_set_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="not the data set of a cohort"):
        read_rows(tmp_path)


def test_unwritable_folder_is_reported(table, monkeypatch):
    def full(_descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("dicom_node.store.durable.os.fsync", full)
    with pytest.raises(StoreUnavailable, match="No space left"):
        table.write(SERIES, facts(), rows_of(measured(), MODEL), Origin.COMPUTED)
    assert list((table.folder / "measurements").iterdir()) == []


def test_kill_at_any_moment_leaves_only_complete_files(table):
    """A process that rewrites one part repeatedly is killed; the part can be read and has all of its rows."""
    program = f"""
from pathlib import Path
from tests.unit.cohort.test_table import *
table = CohortTable(Path({str(table.folder)!r}))
rows = rows_of(measured(), MODEL) * 2000
while True:
    table.write(SERIES, facts(), rows, Origin.COMPUTED)
    print("written", flush=True)
"""
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"written\n"
        time.sleep(0.3)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert read_rows(table.folder).num_rows == 4000
    table.remove_leftovers()
    assert [path.suffix for path in (table.folder / "measurements").iterdir()] == [".parquet"]
