"""Rows from TID 1500 reports: our own (SNOMED CT) and those of other systems, such as IDC's with IBSI codes.

A report of another system names a structure by Finding, Finding Site and Laterality. The row has the name that our
catalogue has for these codes, or else the words of the report: a lesion in the liver is not the liver. A report that
another one names as its predecessor gives no rows.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydicom import dcmread

from dicom_node.cohort.sources import Pulled
from dicom_node.cohort.subject import facts_of_report
from dicom_node.cohort.table import Origin, StructureRow
from dicom_node.errors import ResultUnreadable
from dicom_node.network.dimse import SUCCESS, Response
from dicom_node.receive.policy import CANNOT_UNDERSTAND
from dicom_node.results import read_report
from dicom_node.standard.attributes import items, text
from dicom_node.standard.part10 import FileMeta
from dicom_node.standard.uids import CT_SOP_CLASSES
from inference.structures import STRUCTURES, catalogue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

    from dicom_node.cohort.pseudonym import Pseudonyms
    from dicom_node.cohort.subject import Dates
    from dicom_node.cohort.table import CohortTable
    from dicom_node.network.dimse import CommandSet
    from dicom_node.results import StoredStructure

REPORT_SOP_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR
        "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
        "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
    }
)
_HU, _ATTENUATION = "[hnsf'U]", "112031"
_ML_BY_UNIT = {"ml": 1.0, "mL": 1.0, "cm3": 1.0, "mm3": 1e-3}
"""UCUM units in which reports state volumes."""
_VOLUMES = ("118565006", "YEKZ", "RNU0")
"""SNOMED CT's volume, and those of the IBSI: of the mesh, and of the voxels."""
_ANY_ANATOMY = frozenset({"123037004", "91723000", "91772007", "113343008", "85756007"})
"""Findings that leave it to the Finding Site which structure is meant: anatomical structure, organ, tissue."""
_LARGEST_REPORT_BYTES = 1 << 26
"""104 structures with 30 values each take 2 MB."""
_DIGEST = re.compile(r"\bsha256=([0-9a-f]{64})\b")


def rows_of_report(
    structures: Sequence[StoredStructure], model: str | None, version: str | None, digest: str | None
) -> tuple[StructureRow, ...]:
    """One row for each Measurement Group."""
    return tuple(
        StructureRow(
            structure=_name(stored),
            volume_ml=_volume_ml(stored),
            mean_hu=_hu(stored, "373098007", "Q4LE"),
            sd_hu=_hu(stored, "386136009", ""),
            median_hu=_hu(stored, "373099004", "Y12H"),
            minimum_hu=_hu(stored, "255605001", "1GSF"),
            maximum_hu=_hu(stored, "56851009", "84IY"),
            truncated=stored.truncated,
            model=model,
            model_version=version,
            model_digest=digest,
        )
        for stored in structures
    )


def _name(stored: StoredStructure) -> str:
    if stored.name in _NAMES:
        return stored.name
    finding, site = stored.finding, stored.finding_site
    codes = (finding[0], site[0] or finding[0], stored.laterality)
    known = _NAMES_BY_CODES.get(codes)
    if known is None and finding[0] in _ANY_ANATOMY | {""}:
        known = _NAMES_BY_CODES.get((site[0], *codes[1:]))
    if known is not None:
        return known
    words = dict.fromkeys(each[1] for each in (finding, site) if each[0] not in _ANY_ANATOMY)
    said = f"{' '.join(words)} {stored.laterality}" if any(words) else stored.name
    return re.sub(r"[^a-z0-9]+", "_", said.casefold()).strip("_") or "unnamed"


def _names_by_codes() -> dict[tuple[str, str, str], str]:
    """By Finding, Finding Site and Laterality; the site of a structure without a region is the structure itself."""
    names: dict[tuple[str, str, str], str] = {}
    for structure in STRUCTURES:
        finding, site = structure.type.value, (structure.region or structure.type).value
        names.setdefault((finding, site, structure.laterality or ""), structure.name)
    return names


_NAMES = catalogue().keys()
_NAMES_BY_CODES = _names_by_codes()


def _volume_ml(stored: StoredStructure) -> float | None:
    for concept in _VOLUMES:
        for unit, ml in _ML_BY_UNIT.items():
            if (volume := stored.value(concept, "", unit)) is not None:
                return volume * ml
    return None


def _hu(stored: StoredStructure, derivation: str, ibsi: str) -> float | None:
    """A statistic, coded as a derivation of the attenuation coefficient or as a separate concept."""
    found = stored.value(_ATTENUATION, derivation, _HU)
    return found if found is not None or not ibsi else stored.value(ibsi, "", _HU)


# ---- reports of an archive


class ReportIntake:
    """Reads pulled reports into rows; a context manager, and a Storing for C-GET.

    Only the rows are kept. ``taken`` counts the reports that are in the data set, with rows or a reason.
    """

    def __init__(self, table: CohortTable, pseudonyms: Pseudonyms, dates: Dates) -> None:
        self._table = table
        self._pseudonyms = pseudonyms
        self._dates = dates
        self._folder = tempfile.TemporaryDirectory(prefix="dicom-node-reports-")
        self._content = bytearray()
        self.taken = 0
        self.remarks: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def begin(self, request: CommandSet, abstract_syntax: str, transfer_syntax: str) -> None:
        """See Storing."""
        meta = FileMeta(abstract_syntax, request.sop_instance_uid, transfer_syntax, "")
        self._content = bytearray(meta.encoded())

    def write(self, fragment: memoryview) -> None:
        """See Storing; what is larger than any report is not kept, and refused in the end."""
        if len(self._content) <= _LARGEST_REPORT_BYTES:
            self._content += fragment

    def conclude(self) -> Response:
        """See Storing."""
        path = Path(self._folder.name, "report.dcm")
        path.write_bytes(self._content)
        is_taken = self.take_file(path)
        return Response(SUCCESS) if is_taken else Response(CANNOT_UNDERSTAND, "not a readable report")

    def take_file(self, path: Path) -> bool:
        """Record the rows of the report at ``path``, or the reason why it has none; False if it can't be used at all.

        Raises:
            StoreUnavailable: the data set can't be written.
        """
        try:
            _refuse_too_large(path)
            structures = read_report(path)
            header = dcmread(path, stop_before_pixels=True)
        except ResultUnreadable as error:
            self.remarks.append(str(error))
            return False
        self._take(header, structures)
        self.taken += 1
        return True

    def pulled(self, series_instance_uid: str) -> Pulled:  # noqa: ARG002 - one intake has one series
        """See Taking."""
        return Pulled(self.taken, self.remarks[0] if self.remarks else "")

    def _take(self, header: Dataset, structures: Sequence[StoredStructure]) -> None:
        facts = facts_of_report(header, measured_series(header, structures), self._pseudonyms, self._dates)
        report = self._pseudonyms.uid(text(header, "SOPInstanceUID"))
        for earlier in _predecessors(header):
            self._table.supersede(f"{facts.series}-{self._pseudonyms.uid(earlier)}", facts)
        part = f"{facts.series}-{report}"
        if self._table.is_superseded(part):
            return
        rows = tuple(row for stored in structures for row in _rows_of_other(stored))
        if rows:
            self._table.write(part, facts, rows, Origin.STORED_REPORT)
        else:
            reason = "the report has no measurement group"
            self._table.write_reason(part, facts.study, facts.series, Origin.STORED_REPORT, "empty", reason)


def _refuse_too_large(path: Path) -> None:
    if path.stat().st_size > _LARGEST_REPORT_BYTES:
        raise ResultUnreadable(f"a report of more than {_LARGEST_REPORT_BYTES >> 20} MiB, which is larger than any")


def measured_series(header: Dataset, structures: Sequence[StoredStructure]) -> str:
    """The UID of the CT series that a report measured; that of the report's own series if it names none, or several."""
    named = {stored.source_series_uid for stored in structures} - {""}
    if not named:
        named = {
            text(series, "SeriesInstanceUID")
            for study in items(header, "CurrentRequestedProcedureEvidenceSequence")
            for series in items(study, "ReferencedSeriesSequence")
            if any(
                text(sop, "ReferencedSOPClassUID") in CT_SOP_CLASSES for sop in items(series, "ReferencedSOPSequence")
            )
        }
    return named.pop() if len(named) == 1 else text(header, "SeriesInstanceUID")


def _predecessors(header: Dataset) -> list[str]:
    """The reports that this report replaces (PS3.3 C.17.2.4)."""
    return [
        text(sop, "ReferencedSOPInstanceUID")
        for study in items(header, "PredecessorDocumentsSequence")
        for series in items(study, "ReferencedSeriesSequence")
        for sop in items(series, "ReferencedSOPSequence")
    ]


def _rows_of_other(stored: StoredStructure) -> tuple[StructureRow, ...]:
    """The row of a group, with the algorithm named in the group."""
    name, version, parameters = stored.algorithm
    digest = _DIGEST.search(parameters)
    rows = rows_of_report([stored], name or None, version or None, digest[1] if digest else None)
    if digest or stored.truncated:
        return rows
    # reports of other systems state no coverage: that they don't call it incomplete says nothing
    return tuple(replace(row, truncated=None) for row in rows)
