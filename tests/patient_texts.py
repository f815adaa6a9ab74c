"""Every text that the node writes to patients' studies, collected from one object of each kind and condition.

``python -m tests.patient_texts`` records the digest of the texts for the version that is being released.
"""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from pypdf import PdfReader

import dicom_node
from dicom_node.conformance.samples import samples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom import Dataset

RECORD = Path(__file__).parent / "released_texts.json"
_TEXT = {"CS", "LO", "LT", "SH", "ST", "UC", "UT"}


def texts() -> list[str]:
    """Each text with its kind of object and its attribute; the node's version is left out."""
    found = {
        f"{sample.kind} {sample.part} {place}: {text.replace(dicom_node.__version__, 'VERSION')}"
        for sample in samples()
        for place, text in _of(sample.dataset)
    }
    return sorted(found)


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fault(version: str, current: str, recorded: dict[str, str], *, released: bool) -> str | None:
    """Why texts with the digest ``current`` must not be released as ``version``; None where they may."""
    if not released:
        return f"{version} is recorded, but the changelog calls it unreleased" if version in recorded else None
    if version not in recorded:
        return f"{version} is being released: record its texts with `python -m tests.patient_texts`"
    if recorded[version] != current:
        return (
            f"texts in patients' studies have changed since {version} was released: bump the version in pyproject.toml "
            "and dicom_node/__init__.py, and start a new section of CHANGELOG.md"
        )
    return None


def _of(dataset: Dataset, parents: str = "") -> Iterator[tuple[str, str]]:
    for element in dataset:
        place = f"{parents}{element.keyword}"
        if element.VR == "SQ":
            for item in element.value:
                yield from _of(item, f"{place} > ")
        elif element.VR in _TEXT and element.value:
            yield place, str(element.value)
        elif element.keyword == "EncapsulatedDocument":
            pages = PdfReader(BytesIO(element.value)).pages
            yield place, " ".join(word for page in pages for word in page.extract_text().split())


def recorded() -> dict[str, str]:
    return json.loads(RECORD.read_text())


if __name__ == "__main__":
    RECORD.write_text(json.dumps({**recorded(), dicom_node.__version__: digest(texts())}, indent=1) + "\n")
