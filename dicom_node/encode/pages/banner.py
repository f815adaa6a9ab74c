"""Patient and study as text that can be drawn.

A name with a character that the font lacks is never drawn in part or transliterated, because what an image says about
its patient must be right. The image refers to the header instead.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydicom.charset import ESC, decode_bytes, python_encoding

from dicom_node.encode.pages.lettering import characters
from dicom_node.standard.raw_elements import raw_element

if TYPE_CHECKING:
    from pydicom import Dataset

NOT_STATED = "not stated"
IN_HEADER = "(see header)"
_LONGEST = 64
_UNREADABLE = "\ufffd"
_ASCII = "ascii"
_DEFAULT = ("", "ISO_IR 6", "ISO 2022 IR 6")
_AFTER_ASCII = re.compile(rb"\x1b\(B[^\x1b]*[\x80-\xff]")
"""Bytes beyond ASCII after the escape to ASCII belong to the character set before it, which pydicom forgets."""
_DELIMITERS = set(b"^=\\\r\n\t\f")
"""These end the effect of an escape sequence (PS3.5 6.1.2.5.3)."""
_RIGHT_TO_LEFT = frozenset(("R", "AL"))


@dataclass(frozen=True, slots=True)
class Banner:
    """Patient and study, each attribute as text that can be drawn."""

    patient_name: str
    patient_id: str
    birth_date: str
    sex: str
    study_date: str
    accession_number: str
    study_description: str


def banner(identity: Dataset) -> Banner:
    """The banner of a patient and study; ``identity`` keeps its raw elements."""
    return Banner(
        patient_name=_name(identity),
        patient_id=_text(identity, "PatientID"),
        birth_date=_date(identity, "PatientBirthDate"),
        sex=_text(identity, "PatientSex"),
        study_date=_date(identity, "StudyDate"),
        accession_number=_text(identity, "AccessionNumber"),
        study_description=_text(identity, "StudyDescription"),
    )


def _name(identity: Dataset) -> str:
    """The first component group (PS3.5 6.2.1.2) that can be drawn; an ideographic one follows the alphabetic one."""
    groups = _decoded(identity, "PatientName").split("=")
    if not any(groups):
        return NOT_STATED
    drawable = [_drawable(_family_first(group)) for group in groups]
    shown = [group for group in drawable if group]
    if len(drawable) > 1 and drawable[0] and drawable[1]:
        return f"{drawable[0]} ({drawable[1]})"
    return shown[0] if shown else IN_HEADER


def _family_first(group: str) -> str:
    family, *others = (" ".join(component.split()) for component in group.split("^"))
    return ", ".join(filter(None, (family, " ".join(filter(None, others)))))


def _text(identity: Dataset, keyword: str) -> str:
    text = " ".join(_decoded(identity, keyword).split())
    return (_drawable(text) or IN_HEADER) if text else NOT_STATED


def _date(identity: Dataset, keyword: str) -> str:
    text = _text(identity, keyword)
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if re.fullmatch(r"\d{8}", text) else text


def _decoded(identity: Dataset, keyword: str) -> str:
    """The value, empty if there is none; what cannot be decoded reliably becomes a character that cannot be drawn.

    pydicom decodes bytes in a missing or unknown character set as Western European, which may give another name.
    """
    element = raw_element(identity, keyword)
    value = b"" if element is None else (element.value or b"").strip(b" \0")
    if value.isascii() and ESC not in value:
        return value.decode("ascii")
    terms = _character_sets(identity)
    if not all(term in python_encoding for term in terms) or _AFTER_ASCII.search(value):
        return _UNREADABLE
    encodings = [_ASCII if term in _DEFAULT else python_encoding[term] for term in terms]
    if ESC not in value:
        return value.decode(encodings[0], errors="replace")
    return decode_bytes(value, encodings, _DELIMITERS)


def _character_sets(identity: Dataset) -> list[str]:
    """The terms of Specific Character Set (PS3.3 C.12.1.1.2), at least an empty one."""
    element = raw_element(identity, "SpecificCharacterSet")
    terms = b"" if element is None else element.value or b""
    return [term.strip(" \0") for term in terms.decode("ascii", errors="replace").split("\\")]


def _drawable(text: str) -> str | None:
    """``text``, shortened to fit; None if a character has no glyph or is written from right to left."""
    shown = unicodedata.normalize("NFC", text)
    if not shown or any(unicodedata.bidirectional(each) in _RIGHT_TO_LEFT for each in shown):
        return None
    if any(not _has_glyph(each) for each in shown):
        return None
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _has_glyph(character: str) -> bool:
    return character.isprintable() and character != _UNREADABLE and ord(character) in characters()
