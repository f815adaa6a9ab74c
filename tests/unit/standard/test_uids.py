"""What is a UID, as received and as written."""

import pytest

from dicom_node.standard.uids import is_valid_uid, is_well_formed_uid


@pytest.mark.parametrize("uid", ["1", "1.2.840.10008.1.1", "1.02.3", "0.0", "1" * 64, "2.25." + "9" * 39])
def test_well_formed(uid):
    assert is_well_formed_uid(uid)


@pytest.mark.parametrize(
    "uid", ["", ".", "..", "1.", ".1", "1..2", "1.2\n", "1.2\0", "../x", "1" * 65, "1.a", "1 2", "\u0661.2"]
)
def test_not_well_formed(uid):
    assert not is_well_formed_uid(uid)
    assert not is_valid_uid(uid)


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.1", "0.0", "2.25." + "9" * 39])
def test_valid(uid):
    assert is_valid_uid(uid)


@pytest.mark.parametrize("uid", ["1", "1.02.3", "1" * 64])
def test_well_formed_but_not_valid(uid):
    assert is_well_formed_uid(uid)
    assert not is_valid_uid(uid)
