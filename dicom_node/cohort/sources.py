"""Where series come from: an archive (C-FIND, then C-GET or C-MOVE) or a folder.

PS3.4 annex C, Study Root: the archive is asked for studies, then for the series of each, because not every archive
answers a query for series of any study. Its Number of Series Related Instances says when a series is whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.cohort.intake import Entrance, Intake
from dicom_node.errors import ConfigurationError, FileUnreadable, NetworkError
from dicom_node.network.dimse import PENDING, SUCCESS
from dicom_node.network.requestor import Association, Peer
from dicom_node.standard import transfer_syntaxes
from dicom_node.standard.attributes import text
from dicom_node.standard.files import PassedOver, read_file
from dicom_node.standard.uids import (
    CT_SOP_CLASSES,
    STUDY_ROOT_FIND,
    STUDY_ROOT_GET,
    STUDY_ROOT_MOVE,
    is_well_formed_uid,
)
from dicom_node.store.cohorts import Selected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from dicom_node.cohort.definition import Archive, Definition

_LARGEST_PDU_BYTES = 131072
_SUBOPERATIONS_FAILED = 0xB000
"""Sub-operations complete, with failures or warnings (PS3.4 C.4.2.1.5); the count says what is missing."""
_OF_STUDIES = frozenset(
    {
        *("StudyDate", "StudyTime", "StudyInstanceUID", "StudyID", "StudyDescription", "AccessionNumber"),
        *("ModalitiesInStudy", "ReferringPhysicianName"),
        *("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    }
)
"""Keys of the STUDY level (PS3.4 C.6.2.1.2); all others are asked of series."""
_FOLDER_AE = "FOLDER"


class Source(Protocol):
    """Where the series of a cohort are."""

    def select(self) -> Iterator[Selected]:
        """The series, as the query, the list or the folder has them.

        Raises:
            NetworkError: the archive is away, or refuses the query.
            ConfigurationError: the list can't be used.
        """
        ...

    def pull(self, series: Selected) -> str:
        """Hand in the images; returns what was refused of them, in words for people ("" for nothing).

        Raises:
            NetworkError: the archive is away, or refuses.
            StoreUnavailable: the ledger is unavailable.
        """
        ...


class DimseArchive:
    """An archive with C-FIND and C-GET or C-MOVE."""

    def __init__(self, definition: Definition, our_ae: str, entrance: Entrance) -> None:
        assert definition.archive is not None
        self._archive: Archive = definition.archive
        self._definition = definition
        self._our_ae = definition.archive.our_ae_title or our_ae
        self._node_ae = our_ae
        self._entrance = entrance
        self._peer = Peer(
            ae_title=self._archive.ae_title,
            host=self._archive.host,
            port=self._archive.port,
            connect_timeout_s=self._archive.connect_timeout_s,
            response_timeout_s=self._archive.response_timeout_s,
            largest_pdu_bytes=_LARGEST_PDU_BYTES,
        )
        self._storable = [(uid, syntax) for uid in sorted(CT_SOP_CLASSES) for syntax in _syntaxes()]

    def select(self) -> Iterator[Selected]:
        """See Source."""
        with Association(self._peer, self._our_ae, [(STUDY_ROOT_FIND, str(ExplicitVRLittleEndian))]) as association:
            if self._definition.query is not None:
                yield from _of_query(association, self._definition.query)
            else:
                assert self._definition.series_list is not None
                for study, series in read_list(self._definition.series_list):
                    yield from _series_of(association, study, {"SeriesInstanceUID": series, "Modality": "CT"})

    def pull(self, series: Selected) -> str:
        """See Source."""
        if self._archive.retrieve == "c-move":
            self._move(series)
            return ""
        offers = [(STUDY_ROOT_GET, str(ExplicitVRLittleEndian)), *self._storable]
        with (
            Association(self._peer, self._our_ae, offers, received=sorted(CT_SOP_CLASSES)) as association,
            Intake(self._entrance, self._archive.ae_title, self._archive.host) as intake,
        ):
            status = association.get(STUDY_ROOT_GET, _identifier(series), intake)
        _refuse_failure(status, "C-GET", self._peer)
        return _refused(intake)

    def _move(self, series: Selected) -> None:
        """The instances arrive at the listener of the node."""
        offers = [(STUDY_ROOT_MOVE, str(ExplicitVRLittleEndian))]
        with Association(self._peer, self._our_ae, offers) as association:
            status = association.move(STUDY_ROOT_MOVE, _identifier(series), self._node_ae)
        _refuse_failure(status, "C-MOVE", self._peer)


class Folder:
    """DICOM files below a folder; they are read where they lie and not changed."""

    def __init__(self, folder: Path, entrance: Entrance) -> None:
        self._folder = folder
        self._entrance = entrance
        self._paths: dict[str, list[Path]] | None = None

    def select(self) -> Iterator[Selected]:
        """See Source; files that are no CT images are left out."""
        studies: dict[str, str] = {}
        files: dict[str, dict[str, Path]] = {}
        for path in sorted(path for path in self._folder.rglob("*") if path.is_file()):
            found = read_file(path)
            if isinstance(found, PassedOver) or text(found.header, "SOPClassUID") not in CT_SOP_CLASSES:
                continue
            uid = text(found.header, "SeriesInstanceUID")
            files.setdefault(uid, {}).setdefault(text(found.header, "SOPInstanceUID"), path)
            studies.setdefault(uid, text(found.header, "StudyInstanceUID"))
        self._paths = {uid: list(members.values()) for uid, members in files.items()}
        for uid, members in self._paths.items():
            if is_well_formed_uid(uid) and is_well_formed_uid(studies[uid]):
                yield Selected(uid, studies[uid], len(members))

    def pull(self, series: Selected) -> str:
        """See Source."""
        if self._paths is None:  # selected by an earlier process
            list(self.select())
        assert self._paths is not None
        with Intake(self._entrance, _FOLDER_AE, "") as intake:
            for path in self._paths.get(series.series_instance_uid, ()):
                try:
                    intake.take_file(path)
                except FileUnreadable as error:
                    return f"{path.name}: {error}"
        return _refused(intake)


def source_of(definition: Definition, our_ae: str, entrance: Entrance) -> Source:
    """The source that ``definition`` names."""
    if definition.folder is not None:
        return Folder(definition.folder, entrance)
    return DimseArchive(definition, our_ae, entrance)


def read_list(file: Path) -> Iterator[tuple[str, str]]:
    """Study and Series Instance UID of each line; a study alone stands for all of its CT series (empty series).

    Raises:
        ConfigurationError: the file can't be read, or a line is something else.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the list of series {file} can't be read: {type(error).__name__}") from error
    for number, line in enumerate(lines, start=1):
        uids = line.partition("#")[0].split()
        if not uids:
            continue
        if len(uids) > 2 or not all(map(is_well_formed_uid, uids)):  # noqa: PLR2004 - study and series
            raise ConfigurationError(
                f"{file}:{number}: expected a Study Instance UID, or that and a Series Instance UID"
            )
        yield uids[0], uids[1] if len(uids) > 1 else ""


def _of_query(association: Association, query: Mapping[str, str]) -> Iterator[Selected]:
    of_studies = {keyword: value for keyword, value in query.items() if keyword in _OF_STUDIES}
    of_series = {"Modality": "CT", **{key: value for key, value in query.items() if key not in _OF_STUDIES}}
    studies = [
        text(found, "StudyInstanceUID") for found in _find(association, "STUDY", {"StudyInstanceUID": "", **of_studies})
    ]
    for study in dict.fromkeys(studies):
        if is_well_formed_uid(study):
            yield from _series_of(association, study, of_series)


def _series_of(association: Association, study: str, keys: Mapping[str, str]) -> Iterator[Selected]:
    asked = {"SeriesInstanceUID": "", "NumberOfSeriesRelatedInstances": "", **keys, "StudyInstanceUID": study}
    for found in _find(association, "SERIES", asked):
        uid, count = text(found, "SeriesInstanceUID"), text(found, "NumberOfSeriesRelatedInstances")
        if is_well_formed_uid(uid):
            yield Selected(uid, study, int(count) if count.isdecimal() and int(count) > 0 else None)


def _find(association: Association, level: str, keys: Mapping[str, str]) -> list[Dataset]:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value or None)
    found = []
    for status, answer in association.find(STUDY_ROOT_FIND, identifier):
        if status in PENDING and answer is not None:
            found.append(answer)
        elif status != SUCCESS:
            raise NetworkError(f"the archive answered the query for {level.lower()} level with status {status:04X}")
    return found


def _identifier(series: Selected) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES"
    identifier.StudyInstanceUID = series.study_instance_uid
    identifier.SeriesInstanceUID = series.series_instance_uid
    return identifier


def _refuse_failure(status: int, service: str, peer: Peer) -> None:
    if status not in (SUCCESS, _SUBOPERATIONS_FAILED):
        raise NetworkError(f"{peer} answered a {service} with status {status:04X}")


def _refused(intake: Intake) -> str:
    return f"{len(intake.refusals)} refused: {intake.refusals[0].reason}" if intake.refusals else ""


def _syntaxes() -> list[str]:
    """Explicit VR Little Endian first; Implicit VR Little Endian is offered with it."""
    others = transfer_syntaxes.decodable() - {str(uid) for uid in transfer_syntaxes.UNCOMPRESSED}
    return [str(ExplicitVRLittleEndian), *sorted(others)]
