"""The PACS of the demo: Debian's Orthanc if it is installed, else the embedded archive."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from dicom_node.deliver.scu import classify, peer_of
from dicom_node.demo.processes import Program, ProgramFailed, free_port
from dicom_node.network.requestor import Association, OutgoingFile
from dicom_node.settings import DestinationSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ANSWER_LIMIT_S = 60.0
_POLL_S = 0.2

PACS_AE_TITLE = "DEMOPACS"


@dataclass(frozen=True, slots=True)
class Peer:
    """A DICOM Application Entity on loopback."""

    ae_title: str
    port: int

    def as_destination(self) -> DestinationSettings:
        """The destination settings for this peer."""
        return DestinationSettings(host="127.0.0.1", port=self.port, ae_title=self.ae_title)


class Pacs(Protocol):
    """What the demo needs from a PACS. A context manager: started on entry, ended on exit."""

    name: str
    peer: Peer

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def take(self, files: Sequence[OutgoingFile], progress: Callable[[int], None]) -> None:
        """Store ``files``; ``progress`` is called with the number of files stored so far."""
        ...

    def send_to_node(self, series_uid: str, node: Peer, progress: Callable[[int], None]) -> None:
        """C-STORE all instances of ``series_uid`` to ``node``; ``progress`` as above.

        Raises:
            ProgramFailed: the node did not accept all of them.
        """
        ...

    def fetch(self, study_uid: str, modality: str, folder: Path) -> tuple[Path, ...]:
        """Write the instances of this study and modality in the PACS to files in ``folder``."""
        ...


def choose_pacs(folder: Path, node: Peer) -> Pacs:
    """Orthanc if it is installed, else the embedded archive; its files are kept under ``folder``."""
    orthanc = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    return OrthancPacs(orthanc, folder, node) if orthanc else EmbeddedPacs(folder)


class OrthancPacs:
    """Orthanc on loopback with its own configuration and storage folder, without plugins."""

    def __init__(self, program: str, folder: Path, node: Peer) -> None:
        self.name = "Orthanc"
        self.peer = Peer(PACS_AE_TITLE, free_port())
        self._http_port = free_port()
        self._http = f"http://127.0.0.1:{self._http_port}"
        self._folder = folder
        self._command = [program, str(folder / "orthanc.json")]
        self._configuration = {
            "Name": "dicom-node demo",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "HttpPort": self._http_port,
            "DicomAet": PACS_AE_TITLE,
            "DicomPort": self.peer.port,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowStore": True,
            "DicomModalities": {"node": [node.ae_title, "127.0.0.1", node.port]},
            "Plugins": [],
        }
        self._running = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "orthanc.json").write_text(json.dumps(self._configuration, indent=2), encoding="utf-8")
        program = Program("Orthanc", self._command, self._folder / "orthanc.log", {"TCP_NODELAY": "1"})
        self._running.enter_context(program)
        try:
            program.wait_for_port(self.peer.port)
            program.wait_for_port(self._http_port)
            self.name = f"Orthanc {self._get('/system')['Version']}"
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def take(self, files: Sequence[OutgoingFile], progress: Callable[[int], None]) -> None:
        """See Pacs."""
        _c_store(files, self.peer, "DEMO", progress)

    def send_to_node(self, series_uid: str, node: Peer, progress: Callable[[int], None]) -> None:  # noqa: ARG002
        """See Pacs; the node is the modality in the configuration."""
        found = self._post("/tools/find", {"Level": "Series", "Query": {"SeriesInstanceUID": series_uid}})
        if not found:
            raise ProgramFailed("Orthanc does not have the series that was sent to it")
        instances = len(self._get(f"/series/{found[0]}")["Instances"])
        job = self._post("/modalities/node/store", {"Resources": found, "Synchronous": False})["ID"]
        while True:
            state = self._get(f"/jobs/{job}")
            progress(instances * int(state["Progress"]) // 100)
            if state["State"] == "Success":
                break
            if state["State"] == "Failure":
                raise ProgramFailed(f"Orthanc could not send the series to the node: {state['ErrorDescription']}")
            time.sleep(_POLL_S)
        failed = state["Content"].get("FailedInstancesCount", 0)
        if failed:
            raise ProgramFailed(f"the node refused {failed} instances from Orthanc")

    def fetch(self, study_uid: str, modality: str, folder: Path) -> tuple[Path, ...]:
        """See Pacs."""
        query = {"StudyInstanceUID": study_uid, "Modality": modality}
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for series in self._post("/tools/find", {"Level": "Series", "Query": query, "Expand": True}):
            for instance in series["Instances"]:
                path = folder / f"{modality}_{instance}.dcm"
                with urllib.request.urlopen(f"{self._http}/instances/{instance}/file") as answer, path.open("wb") as to:  # noqa: S310 - loopback
                    shutil.copyfileobj(answer, to)
                paths.append(path)
        return tuple(paths)

    def _get(self, place: str) -> Any:
        with urllib.request.urlopen(self._http + place) as answer:  # noqa: S310 - loopback
            return json.load(answer)

    def _post(self, place: str, body: object) -> Any:
        request = urllib.request.Request(self._http + place, data=json.dumps(body).encode())  # noqa: S310 - loopback
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_LIMIT_S) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace")
            raise ProgramFailed(f"Orthanc answered {place} with {error.code}: {reason}") from error


class EmbeddedPacs:
    """The archive of :mod:`dicom_node.demo.archive` in its own process; sends with the node's SCU."""

    name = "embedded archive (Orthanc is not installed)"

    def __init__(self, folder: Path) -> None:
        self.peer = Peer(PACS_AE_TITLE, free_port())
        self._folder = folder
        self._received = folder / "received"
        self._running = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "dicom_node.demo.archive", "--folder", str(self._received)]
        command += ["--ae-title", self.peer.ae_title, "--port", str(self.peer.port)]
        program = self._running.enter_context(Program("the archive", command, self._folder / "archive.log"))
        try:
            program.wait_for_port(self.peer.port)
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def take(self, files: Sequence[OutgoingFile], progress: Callable[[int], None]) -> None:
        """See Pacs."""
        _c_store(files, self.peer, "DEMO", progress)

    def send_to_node(self, series_uid: str, node: Peer, progress: Callable[[int], None]) -> None:
        """See Pacs."""
        files = [path for path, header in self._headers() if header.SeriesInstanceUID == series_uid]
        _c_store(outgoing_files(files), node, self.peer.ae_title, progress)

    def fetch(self, study_uid: str, modality: str, folder: Path) -> tuple[Path, ...]:
        """See Pacs."""
        folder.mkdir(parents=True, exist_ok=True)
        return tuple(
            Path(shutil.copy(path, folder / f"{modality}_{path.name}"))
            for path, header in self._headers()
            if header.StudyInstanceUID == study_uid and header.Modality == modality
        )

    def _headers(self) -> list[tuple[Path, Any]]:
        tags = ["StudyInstanceUID", "SeriesInstanceUID", "Modality"]
        return [
            (path, dcmread(path, stop_before_pixels=True, specific_tags=tags))
            for path in sorted(self._received.glob("*.dcm"))
        ]


def outgoing_files(paths: Sequence[Path]) -> list[OutgoingFile]:
    """The identification of each DICOM Part 10 file; other files are left out."""
    files = []
    for path in paths:
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
            meta = header.file_meta
            files.append(
                OutgoingFile(path, str(header.SOPClassUID), str(header.SOPInstanceUID), str(meta.TransferSyntaxUID))
            )
        except (InvalidDicomError, AttributeError):
            continue
    return files


def _c_store(files: Sequence[OutgoingFile], to: Peer, our_ae: str, progress: Callable[[int], None]) -> None:
    offers = {(file.sop_class_uid, file.transfer_syntax_uid) for file in files}
    with Association(peer_of(to.as_destination()), our_ae, sorted(offers)) as association:
        for count, file in enumerate(files, start=1):
            meaning = classify(association.store(file))
            if not meaning.delivered:
                raise ProgramFailed(f"{to.ae_title} did not accept {file.sop_instance_uid}: {meaning.text}")
            progress(count)
