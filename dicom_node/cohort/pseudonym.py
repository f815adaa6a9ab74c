"""Keyed pseudonyms, which replace patient, study and series in a table that leaves the hospital.

A pseudonym is an HMAC-SHA256 (RFC 2104) under a key that stays at the site. Without the key, nobody can compute the
pseudonym of a known Patient ID, which a plain hash of the few million possible IDs would allow; with the same key, the
same patient has the same pseudonym in every data set of the site.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dicom_node.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

SHORTEST_KEY_BYTES = 32
"""The length of the digest (RFC 2104, section 3)."""
_FEWEST_DISTINCT = 10
"""Distinct bytes: 32 random bytes have 30, their 64 hexadecimal digits 15; fewer suggest a word, a date or zeros."""
_CHARACTERS = 32
"""Hexadecimal digits: 128 bits; among a billion patients, two share a pseudonym with a probability of 1e-21."""
_LONGEST_SHIFT_DAYS = 365


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """The pseudonyms for one key. ``key_id`` identifies the key without revealing anything about it."""

    key_id: str
    _key: bytes = field(repr=False)

    @classmethod
    def of_key(cls, key: bytes) -> Pseudonyms:
        """``key`` is used unchecked; :func:`read_key` checks it."""
        return cls(_keyed(key, "key")[:16], key)

    def patient(self, patient_id: str, issuer: str, study_instance_uid: str) -> str:
        """The pseudonym for Patient ID and Issuer of Patient ID; without an ID, a patient is identified by study."""
        if not patient_id:
            return self._digest("patient of study", study_instance_uid)
        return self._digest("patient", issuer, patient_id)

    def uid(self, uid: str) -> str:
        """The pseudonym for a Study, Series or SOP Instance UID."""
        return self._digest("uid", uid)

    def shift_days(self, patient: str) -> int:
        """The number of days by which all dates of the patient with this pseudonym are moved into the past (1..365)."""
        drawn = int(self._digest("dates", patient), 16)
        return 1 + drawn % _LONGEST_SHIFT_DAYS

    def _digest(self, kind: str, *parts: str) -> str:
        return _keyed(self._key, kind, *parts)[:_CHARACTERS]


def _keyed(key: bytes, *parts: str) -> str:
    # include the length of each part: "1" + "23" is not the same patient as "12" + "3"
    message = b"".join(b"%d:%s" % (len(part), part) for part in (text.encode() for text in parts))
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def read_key(file: Path) -> Pseudonyms:
    """The pseudonyms for the key in ``file``.

    Raises:
        ConfigurationError: the file is missing, is accessible to others than its owner, or the key is weak.
    """
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            key = opened.read().strip()
    except OSError as error:
        made = f"; `dicom-node cohort key {file}` creates one" if isinstance(error, FileNotFoundError) else ""
        raise ConfigurationError(f"the pseudonym key {file} can't be read: {error.strerror}{made}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(
            f"the pseudonym key {file} has mode {stat.S_IMODE(mode):04o}; only its owner may have access (chmod 600)"
        )
    if len(key) < SHORTEST_KEY_BYTES or len(set(key)) < _FEWEST_DISTINCT:
        raise ConfigurationError(
            f"the pseudonym key {file} is weak: {len(key)} bytes, {len(set(key))} of them distinct; "
            f"expected at least {SHORTEST_KEY_BYTES} random bytes"
        )
    return Pseudonyms.of_key(key)


def write_new_key(file: Path) -> None:
    """Write a random key to ``file``, which must not exist, with mode 0600.

    Raises:
        ConfigurationError: it exists or can't be written.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigurationError(
            f"{file} exists; with another key, every patient would get another pseudonym"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{file} can't be written: {error.strerror}") from error
    with os.fdopen(descriptor, "w") as opened:
        opened.write(f"{secrets.token_hex(SHORTEST_KEY_BYTES)}\n")
        opened.flush()
        os.fsync(opened.fileno())
