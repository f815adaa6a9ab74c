"""Every C-STORE status means delivered, retry or refused, as the table says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.deliver.scu import classify


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB006, 0xB007, 0xB123, 0x0111])
def test_status_that_means_delivered(status):
    assert classify(status).delivered
    assert not classify(status).retry


@pytest.mark.parametrize("status", [0xA700, 0xA701, 0xA7FF, 0x0210, 0x0213, 0x0110])
def test_status_that_means_retry(status):
    assert not classify(status).delivered
    assert classify(status).retry


@pytest.mark.parametrize("status", [0xA900, 0xA9FF, 0xC000, 0xC211, 0xCFFF, 0x0117, 0x0122, 0x0124, 0xFE00, 0x1234])
def test_status_that_means_refused(status):
    assert not classify(status).delivered
    assert not classify(status).retry


@given(st.integers(0, 0xFFFF))
def test_only_success_and_warnings_count_as_delivered(status):
    meaning = classify(status)
    assert not (meaning.delivered and meaning.retry)
    assert meaning.text
    assert meaning.delivered == (status in (0x0000, 0x0111) or 0xB000 <= status <= 0xBFFF)
