"""Where series come from: an archive (C-FIND, then C-GET or C-MOVE; or DICOMweb) or a folder.

PS3.4 annex C, Study Root: the archive is queried for studies, then for the series of each, because not every archive
answers a query for series without a study. Its Number of Series Related Instances tells when a series is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol, Self

import structlog
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.errors import ConfigurationError, FileUnreadable, NetworkError
from dicom_node.network.dimse import PENDING, SUCCESS
from dicom_node.network.requestor import Association, Peer
from dicom_node.receive.count import MOST_INSTANCES
from dicom_node.standard import transfer_syntaxes
from dicom_node.standard.attributes import text
from dicom_node.standard.files import COPY, RECODED, PassedOver, passed_over_beside, read_file, read_repeated
from dicom_node.standard.uids import (
    STUDY_ROOT_FIND,
    STUDY_ROOT_GET,
    STUDY_ROOT_MOVE,
    is_well_formed_uid,
)
from dicom_node.store.cohorts import Selected

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dicom_node.cohort.definition import Archive as DimseSettings
    from dicom_node.cohort.definition import Definition
    from dicom_node.network.dimse import CommandSet, Response
    from dicom_node.types import SourceInstance

_LARGEST_PDU_BYTES = 131072
_LONGEST_COUNT = 12
"""Characters of its VR, IS (PS3.5 6.2)."""
_SUBOPERATIONS_FAILED = 0xB000
"""Sub-operations complete, with failures or warnings (PS3.4 C.4.2.1.5); the count says what is missing."""
_OF_STUDIES = frozenset(
    {
        *("StudyDate", "StudyTime", "StudyInstanceUID", "StudyID", "StudyDescription", "AccessionNumber"),
        *("ModalitiesInStudy", "ReferringPhysicianName"),
        *("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    }
)
"""Keys of the STUDY level (PS3.4 C.6.2.1.2); all others are used in queries for series."""
_FOLDER_AE = "FOLDER"

Find = Callable[[str, Mapping[str, str]], Sequence[Dataset]]
"""A query at a level with keys (empty ones are to be returned) that gives the answers."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """How many instances of the series are stored now, and a description of what was refused ("" for nothing)."""

    stored: int
    refused: str


class Taking(Protocol):
    """Receives the instances of a series, into the spool or into rows; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    def begin(self, request: CommandSet, abstract_syntax: str, transfer_syntax: str) -> None:
        """See :class:`~dicom_node.network.requestor.Storing`."""

    def write(self, fragment: memoryview) -> None:
        """See Storing."""

    def conclude(self) -> Response:
        """See Storing."""
        ...

    def take_file(self, path: Path) -> object:
        """Accept the instance in a Part 10 file.

        Raises:
            FileUnreadable: it is not a Part 10 file.
        """

    def pulled(self, series_instance_uid: str) -> Pulled:
        """What is stored of the series."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which objects a cohort pulls, and what receives them: ``open(calling_ae, address)`` begins a series.

    ``largest_instance_bytes``: what an archive sends may be no larger, as what is sent to the node.
    """

    modality: str
    sop_classes: frozenset[str]
    open: Callable[[str, str], Taking]
    largest_instance_bytes: int

    def refuse_larger(self, size_bytes: int) -> None:
        """Check how much of an instance has come.

        Raises:
            NetworkError: it is more than the limit.
        """
        if size_bytes > self.largest_instance_bytes:
            raise NetworkError(
                f"the archive sends an instance of more than {self.largest_instance_bytes} bytes, the limit of "
                "receive.maximum_instance_bytes"
            )


class Source(Protocol):
    """Where the series of a cohort are."""

    def select(self) -> Iterator[Selected]:
        """The series selected by the query, the list or the folder.

        Raises:
            NetworkError: the archive is unreachable, or refuses the query.
            ConfigurationError: the list can't be used.
        """
        ...

    def pull(self, series: Selected) -> Pulled:
        """Pull the instances of ``series``.

        Raises:
            NetworkError: the archive is unreachable, or refuses.
            StoreUnavailable: the ledger is unavailable.
        """
        ...


class DimseArchive:
    """An archive with C-FIND and C-GET or C-MOVE."""

    def __init__(self, definition: Definition, archive: DimseSettings, node_ae: str, wanted: Wanted) -> None:
        self._definition = definition
        self._archive = archive
        self._wanted = wanted
        self._our_ae = archive.our_ae_title or node_ae
        self._node_ae = node_ae
        self._peer = Peer(
            ae_title=archive.ae_title,
            host=archive.host,
            port=archive.port,
            connect_timeout_s=archive.connect_timeout_s,
            response_timeout_s=archive.response_timeout_s,
            largest_pdu_bytes=_LARGEST_PDU_BYTES,
        )
        self._storable = [(uid, syntax) for uid in sorted(wanted.sop_classes) for syntax in _syntaxes()]

    def select(self) -> Iterator[Selected]:
        """See Source."""
        with Association(self._peer, self._our_ae, [(STUDY_ROOT_FIND, str(ExplicitVRLittleEndian))]) as association:
            yield from selected_of(self._definition, self._wanted.modality, partial(_find, association))

    def pull(self, series: Selected) -> Pulled:
        """See Source."""
        with self._wanted.open(self._archive.ae_title, self._archive.host) as taking:
            if self._archive.retrieve == "c-move":  # the instances arrive at the listener of the node
                offers = [(STUDY_ROOT_MOVE, str(ExplicitVRLittleEndian))]
                with Association(self._peer, self._our_ae, offers) as association:
                    status = association.move(STUDY_ROOT_MOVE, _identifier(series), self._node_ae)
            else:
                offers = [(STUDY_ROOT_GET, str(ExplicitVRLittleEndian)), *self._storable]
                classes = sorted(self._wanted.sop_classes)
                with Association(self._peer, self._our_ae, offers, received=classes) as association:
                    bounded = _Bounded(taking, self._wanted)
                    status = association.get(STUDY_ROOT_GET, _identifier(series), bounded)
        if status not in (SUCCESS, _SUBOPERATIONS_FAILED):
            raise NetworkError(f"{self._peer} answered a {self._archive.retrieve.upper()} with status {status:04X}")
        return taking.pulled(series.series_instance_uid)


class _Bounded:
    """Passes instances on unless they are too large; a :class:`~dicom_node.network.requestor.Storing`."""

    def __init__(self, taking: Taking, wanted: Wanted) -> None:
        self._taking = taking
        self._wanted = wanted
        self._taken_bytes = 0

    def begin(self, request: CommandSet, abstract_syntax: str, transfer_syntax: str) -> None:
        """See Storing."""
        self._taken_bytes = 0
        self._taking.begin(request, abstract_syntax, transfer_syntax)

    def write(self, fragment: memoryview) -> None:
        """See Storing.

        Raises:
            NetworkError: the instance is too large.
        """
        self._taken_bytes += len(fragment)
        self._wanted.refuse_larger(self._taken_bytes)
        self._taking.write(fragment)

    def conclude(self) -> Response:
        """See Storing."""
        return self._taking.conclude()


@dataclass(slots=True)
class _Series:
    """The files of a series by SOP Instance UID, those that repeat one with another image, and what is missing.

    ``recoded`` repeat one in another transfer syntax: the node decodes them to tell whether they are copies.
    """

    study_instance_uid: str
    files: dict[str, Path] = field(default_factory=dict)
    repeating: list[Path] = field(default_factory=list)
    recoded: list[Path] = field(default_factory=list)
    missing: tuple[str, ...] = ()
    """Reasons why files that may have been images of it are none."""

    @property
    def expected_count(self) -> int:
        """Images that there would be if each could be read and had a UID of its own."""
        return len(self.files) + len(self.repeating) + len(self.missing)


class Folder:
    """DICOM files below a folder; they are read in place and not changed."""

    def __init__(self, folder: Path, wanted: Wanted) -> None:
        self._folder = folder
        self._wanted = wanted
        self._found: dict[str, _Series] | None = None

    def select(self) -> Iterator[Selected]:
        """See Source; objects of other kinds are left out.

        A file that can't be read counts as an image of the series in its folder, which can then not be whole; if the
        folder has several, the log says how many files were left out.
        """
        self._found = self._read()
        for uid, series in self._found.items():
            if is_well_formed_uid(uid) and is_well_formed_uid(series.study_instance_uid):
                yield Selected(uid, series.study_instance_uid, series.expected_count)
            else:
                _log_left_out(series.expected_count, "Series or Study Instance UID is missing or not a UID")

    def pull(self, series: Selected) -> Pulled:
        """See Source."""
        if self._found is None:  # selected by an earlier process
            self._found = self._read()
        found = self._found.get(series.series_instance_uid, _Series(series.study_instance_uid))
        missing = list(found.missing)
        with self._wanted.open(_FOLDER_AE, "") as taking:
            # copies first: with the last image, the series has as many as it should, and is complete
            for path in (*found.recoded, *found.files.values(), *found.repeating):
                try:
                    taking.take_file(path)
                except FileUnreadable as error:
                    missing.append(str(error))
        pulled = taking.pulled(series.series_instance_uid)
        # without names of files, which may be those of patients
        return replace(pulled, refused=f"files left out: {len(missing)} ({missing[0]})") if missing else pulled

    def _read(self) -> dict[str, _Series]:
        found: dict[str, _Series] = {}
        passed_over: dict[Path, list[PassedOver]] = {}
        for path in sorted(path for path in self._folder.rglob("*") if path.is_file()):
            instance = read_file(path)
            if isinstance(instance, PassedOver):
                passed_over.setdefault(path.parent, []).append(instance)
            elif text(instance.header, "SOPClassUID") in self._wanted.sop_classes:
                uid, study = (text(instance.header, f"{level}InstanceUID") for level in ("Series", "Study"))
                _add(found.setdefault(uid, _Series(study)), instance)
        _attribute(found, passed_over)
        return found


def _add(series: _Series, instance: SourceInstance) -> None:
    """Headers are not kept: a folder may hold a hundred thousand files."""
    path = series.files.setdefault(text(instance.header, "SOPInstanceUID"), instance.path)
    if path is instance.path:
        return
    known = read_file(path)
    reason = known.reason if isinstance(known, PassedOver) else read_repeated(known, instance).reason
    if reason == RECODED:
        series.recoded.append(instance.path)
    elif reason != COPY:
        series.repeating.append(instance.path)


def _attribute(found: Mapping[str, _Series], passed_over: Mapping[Path, Sequence[PassedOver]]) -> None:
    """Files that may have been images belong to the series beside them, if there is one only."""
    beside: dict[Path, list[_Series]] = {}
    for series in found.values():
        for folder in {path.parent for path in series.files.values()}:
            beside.setdefault(folder, []).append(series)
    for folder, files in passed_over.items():
        there = beside.get(folder, [])
        paths = [path for series in there for path in series.files.values() if path.parent == folder]
        reasons = tuple(each.reason for each in passed_over_beside(paths, files) if each.is_dicom)
        reasons = reasons if there else tuple(each.reason for each in files if each.is_dicom)
        if len(there) == 1:
            there[0].missing += reasons
        elif reasons:
            _log_left_out(len(reasons), reasons[0])


def _log_left_out(count: int, reason: str) -> None:
    structlog.get_logger().warning("cohort.files_left_out", files=count, reason=reason)


def source_of(definition: Definition, node_ae: str, wanted: Wanted) -> Source:
    """The source named in ``definition``."""
    if definition.folder is not None:
        return Folder(definition.folder, wanted)
    if definition.web_archive is not None:
        from dicom_node.cohort.dicomweb import WebArchive  # noqa: PLC0415 - loads httpx, for this archive only

        return WebArchive(definition, definition.web_archive, wanted)
    assert definition.archive is not None
    return DimseArchive(definition, definition.archive, node_ae, wanted)


def read_list(file: Path) -> Iterator[tuple[str, str]]:
    """Study and Series Instance UID of each line; a study alone means all of its CT series (empty series).

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
            raise ConfigurationError(f"{file}:{number}: expected the UID of a study, or of a study and a series")
        yield uids[0], uids[1] if len(uids) > 1 else ""


def selected_of(definition: Definition, modality: str, find: Find) -> Iterator[Selected]:
    """The series selected by the query or the list: studies first, then the series of each."""
    if definition.query is None:
        assert definition.series_list is not None
        for study, series in read_list(definition.series_list):
            yield from _listed(find, study, series, modality)
        return
    query = definition.query
    of_studies = {keyword: value for keyword, value in query.items() if keyword in _OF_STUDIES}
    of_series = {"Modality": modality, **{key: value for key, value in query.items() if key not in _OF_STUDIES}}
    studies = [text(found, "StudyInstanceUID") for found in find("STUDY", {"StudyInstanceUID": "", **of_studies})]
    for study in dict.fromkeys(studies):
        if is_well_formed_uid(study):
            yield from _series_of(find, study, of_series)


def _listed(find: Find, study: str, series: str, modality: str) -> Iterator[Selected]:
    """A series that is listed and not found stays in the cohort, and fails when it is pulled."""
    found = list(_series_of(find, study, {"SeriesInstanceUID": series, "Modality": modality}))
    if not found and series:
        found = [Selected(series, study, None)]
    if not found:
        structlog.get_logger().warning("cohort.nothing_found", study=study, modality=modality)
    yield from found


def _series_of(find: Find, study: str, keys: Mapping[str, str]) -> Iterator[Selected]:
    asked = {"SeriesInstanceUID": "", "NumberOfSeriesRelatedInstances": "", **keys, "StudyInstanceUID": study}
    for found in find("SERIES", asked):
        uid, count = text(found, "SeriesInstanceUID"), text(found, "NumberOfSeriesRelatedInstances")
        if is_well_formed_uid(uid):
            is_count = count.isdecimal() and len(count) <= _LONGEST_COUNT and 0 < int(count) <= MOST_INSTANCES
            yield Selected(uid, study, int(count) if is_count else None)


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


def _syntaxes() -> list[str]:
    """Explicit VR Little Endian first; Implicit VR Little Endian is offered with it."""
    others = transfer_syntaxes.decodable() - {str(uid) for uid in transfer_syntaxes.UNCOMPRESSED}
    return [str(ExplicitVRLittleEndian), *sorted(others)]
