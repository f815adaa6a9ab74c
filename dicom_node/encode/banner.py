"""Whose images these are, in words that can be drawn.

A name that the font does not know is never drawn in part or in other letters: what a picture says about its patient
must be right. It then says where the name stands.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from dataclasses import dataclass

from pydicom import Dataset

from dicom_node.encode.lettering import characters

NOT_STATED = "not stated"
IN_HEADER = "(see header)"
_LONGEST = 64
_UNREADABLE = "\ufffd"
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
    # reading an element replaces its bytes by text: on a copy
    own = Dataset({tag: identity.get_item(tag) for tag in identity.keys()})  # noqa: SIM118
    own.set_original_encoding(is_implicit_vr=False, is_little_endian=True)
    return Banner(
        patient_name=_name(own),
        patient_id=_text(own, "PatientID"),
        birth_date=_date(own, "PatientBirthDate"),
        sex=_text(own, "PatientSex"),
        study_date=_date(own, "StudyDate"),
        accession_number=_text(own, "AccessionNumber"),
        study_description=_text(own, "StudyDescription"),
    )


def _name(identity: Dataset) -> str:
    """The alphabetic component group (PS3.5 6.2.1.2), with the ideographic one behind it where it can be drawn."""
    groups = _decoded(identity, "PatientName").split("=")
    if not any(groups):
        return NOT_STATED
    alphabetic, ideographic, *_ = (*(_drawable(_family_first(group)) for group in groups), None)
    if alphabetic and ideographic:
        return f"{alphabetic} ({ideographic})"
    return alphabetic or ideographic or IN_HEADER


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
    """The value, empty where there is none; what cannot be read in any way is a character that cannot be drawn."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's words on an unknown character set quote the value
            value = identity.get(keyword)
            return "" if value is None else str(value)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it cannot be shown
        return _UNREADABLE


def _drawable(text: str) -> str | None:
    """``text``, cut to what fits; None where a character has no glyph or would have to be laid from right to left."""
    shown = unicodedata.normalize("NFC", text)
    if not shown or any(unicodedata.bidirectional(each) in _RIGHT_TO_LEFT for each in shown):
        return None
    if any(not _has_glyph(each) for each in shown):
        return None
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _has_glyph(character: str) -> bool:
    return character.isprintable() and character != _UNREADABLE and ord(character) in characters()
