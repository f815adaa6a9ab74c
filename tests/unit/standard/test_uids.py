"""The form of a UID."""

import pytest

from dicom_node.standard.uids import is_well_formed_uid


@pytest.mark.parametrize("uid", ["1", "1.2.840.10008.1.1", "1.02.3", "0.0", "1" * 64, "2.25." + "9" * 39])
def test_well_formed_uid(uid):
    assert is_well_formed_uid(uid)


@pytest.mark.parametrize(
    "uid", ["", ".", "..", "1.", ".1", "1..2", "1.2\n", "1.2\0", "../x", "1" * 65, "1.a", "1 2", "\u0661.2"]
)
def test_malformed_uid(uid):
    assert not is_well_formed_uid(uid)
