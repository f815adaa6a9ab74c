"""The disk counts as full from the stop mark until it falls below the resume mark; meanwhile nothing is accepted."""

from __future__ import annotations

import shutil

import pytest

from dicom_node.errors import StoreUnavailable
from dicom_node.settings import OperateSettings
from dicom_node.store.disk import DiskWatermark

MARKS = OperateSettings(disk_stop_percent=85, disk_resume_percent=80)


@pytest.fixture
def disk(monkeypatch):
    def used(percent):
        usage = shutil._ntuple_diskusage(1000, percent * 10, 1000 - percent * 10)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    return used


def test_full_above_the_stop_mark_until_below_the_resume_mark(tmp_path, disk):
    watermark = DiskWatermark(tmp_path, MARKS)
    seen = []
    for percent in (84, 86, 82, 79, 84):
        disk(percent)
        seen.append(watermark.look())
    assert seen == [False, True, True, False, False]


def test_instances_are_refused_while_the_disk_is_full(tmp_path, disk):
    watermark = DiskWatermark(tmp_path, MARKS)
    disk(50)
    watermark.refuse_when_full()
    disk(90)
    with pytest.raises(StoreUnavailable, match="85 %"):
        watermark.refuse_when_full()


def test_minimum_of_free_bytes_counts_whatever_the_percentage(tmp_path, disk):
    disk(10)
    assert DiskWatermark(tmp_path, MARKS, minimum_free_bytes=901).look()
    assert not DiskWatermark(tmp_path, MARKS, minimum_free_bytes=900).look()


def test_missing_disk_is_a_named_error(tmp_path):
    with pytest.raises(StoreUnavailable):
        DiskWatermark(tmp_path / "gone", MARKS).look()
