"""Pseudonyms: one per patient, different for different patients, and none without a strong key."""

from __future__ import annotations

import hashlib
import hmac
import stat

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.cli import main
from dicom_node.cohort.pseudonym import Pseudonyms, read_key, write_new_key
from dicom_node.errors import ConfigurationError

KEY = bytes(range(32))
TEXT = st.text(max_size=12)


@given(first=st.tuples(TEXT, TEXT), second=st.tuples(TEXT, TEXT))
def test_pseudonyms_are_equal_only_if_issuer_and_id_are_equal(first, second):
    pseudonyms = Pseudonyms.of_key(KEY)
    one, other = (pseudonyms.patient(patient_id, issuer, "1.2.3") for patient_id, issuer in (first, second))
    nameless = not first[0] and not second[0]
    assert (one == other) is (first == second or nameless)


def test_pseudonym_is_an_hmac_that_can_be_recomputed_with_the_key():
    expected = hmac.new(KEY, b"7:patient8:HOSPITAL5:12345", hashlib.sha256).hexdigest()
    assert Pseudonyms.of_key(KEY).patient("12345", "HOSPITAL", "1.2") == expected[:32]


def test_pseudonym_cannot_be_recomputed_without_the_key():
    mine, theirs = Pseudonyms.of_key(KEY), Pseudonyms.of_key(KEY[::-1])
    assert mine.patient("1", "", "1.2") != theirs.patient("1", "", "1.2")
    assert mine.uid("1.2") != theirs.uid("1.2")
    assert mine.key_id != theirs.key_id
    assert KEY.hex() not in repr(mine)
    assert str(KEY) not in repr(mine)


def test_patients_without_an_id_are_distinguished_by_study():
    pseudonyms = Pseudonyms.of_key(KEY)
    assert pseudonyms.patient("", "", "1.2.3") != pseudonyms.patient("", "", "1.2.4")
    assert pseudonyms.patient("", "", "1.2.3") == pseudonyms.patient("", "A", "1.2.3")


@given(patient=st.text(alphabet="0123456789abcdef", min_size=32, max_size=32))
def test_dates_are_shifted_by_one_to_365_days(patient):
    assert 1 <= Pseudonyms.of_key(KEY).shift_days(patient) <= 365


def test_new_key_is_strong_and_readable_by_its_owner_only(tmp_path):
    file = tmp_path / "key"
    write_new_key(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_key(file).patient("1", "", "1.2") == read_key(file).patient("1", "", "1.2")
    with pytest.raises(ConfigurationError, match="exists"):
        write_new_key(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"secret", "weak: 6 bytes"), (bytes(64), "weak: 64 bytes, 1 of"), (b"0123456789abcdef\n", "weak: 16 bytes")],
)
def test_weak_key_is_refused(tmp_path, content, says):
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=says):
        read_key(file)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_key_readable_by_others_is_refused(tmp_path, mode):
    file = tmp_path / "key"
    write_new_key(file)
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"mode {mode:04o}; only its owner"):
        read_key(file)


def test_missing_key_error_names_the_command_that_creates_one(tmp_path):
    file = tmp_path / "key"
    with pytest.raises(ConfigurationError, match=f"`dicom-node cohort key {file}` creates one"):
        read_key(file)
    assert CliRunner().invoke(main, ["cohort", "key", str(file)]).exit_code == 0
    assert read_key(file).key_id
    again = CliRunner().invoke(main, ["cohort", "key", str(file)])
    assert (again.exit_code, again.stdout) == (1, "")
