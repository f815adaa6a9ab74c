"""Patient names reach the archive byte for byte as the scanner sent them, and appear nowhere else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml
from pydicom import dcmread

from dicom_node.demo.pacs import Peer
from dicom_node.demo.processes import Program
from dicom_node.store.states import JobState
from tests.support.ports import free_port
from tests.support.raw_series import PLANES, ROOT, SURNAME, changed, padded, part10, plane_elements, tag_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.raw_series import Change

pytestmark = [pytest.mark.acceptance, pytest.mark.filterwarnings("ignore")]

NAMES: dict[int, dict[str | int, Change]] = {
    1: {"PatientName": f"{SURNAME}^Änne".encode("latin-1")},
    2: {"SpecificCharacterSet": b"GB18030", "PatientName": "王^小东".encode("gb18030")},
    3: {
        "SpecificCharacterSet": b"\\ISO 2022 IR 87",
        "PatientName": f"{SURNAME}^Tarou=".encode() + b"\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
    },
    4: {"SpecificCharacterSet": None, "PatientName": b"Zweifelm\xfcller^?", "StudyID": None, "PatientSex": b"f"},
    5: {"SpecificCharacterSet": b"no such set", "PatientName": SURNAME.encode() * 20, "PatientBirthDate": b"invalid"},
}
TWO_PATIENTS = 6


def write(folder: Path, number: int, changes: dict[str | int, Change]) -> list[Path]:
    """A separate series with these changes; in the two-patient series, one image has another character set."""
    folder.mkdir()
    own: dict[str | int, Change] = {
        keyword: f"{ROOT}.9.{number}.{part}".encode()
        for keyword, part in (("StudyInstanceUID", 1), ("SeriesInstanceUID", 2), ("FrameOfReferenceUID", 3))
    }
    paths = []
    for k in range(PLANES):
        uid: dict[str | int, Change] = {"SOPInstanceUID": f"{ROOT}.9.{number}.4.{k}".encode()}
        if number == TWO_PATIENTS and k == 1:
            uid["SpecificCharacterSet"] = b"ISO_IR 144"
        paths.append(folder / f"{k}.dcm")
        paths[-1].write_bytes(part10(changed(plane_elements(k), {**own, **changes, **uid})))
    return paths


def test_names_reach_the_archive_unchanged_and_never_a_log(make_node, tmp_path) -> None:
    received = tmp_path / "received"
    received.mkdir()
    archive = Peer("ARCHIVE", free_port())
    node = make_node({"archive": archive})
    wanted = {"to": "archive", "contours": ["tissue"], "capture": True, "document": True, "notice": True}
    rule = {"name": "ct", "when": [], "model": "tissue", "destinations": [wanted]}
    (node.folder / "rules.yaml").write_text(yaml.safe_dump({"rules": [rule]}))
    command = ["storescp", "-od", str(received), str(archive.port)]
    with Program("storescp", command, tmp_path / "storescp.log") as storescp:
        storescp.wait_for_port(archive.port)
        node.start()
        for number, changes in NAMES.items():
            assert node.send(write(tmp_path / str(number), number, changes)).returncode == 0
        two = {"PatientName": "Müller".encode("latin-1")}
        assert node.send(write(tmp_path / "two", TWO_PATIENTS, two)).returncode == 0
        for number in NAMES:
            node.wait_for_state(f"{ROOT}.9.{number}.2", JobState.DELIVERED)
        rejected = node.wait_for_state(f"{ROOT}.9.{TWO_PATIENTS}.2", JobState.REJECTED)
        told = json.dumps(node.jobs()) + node.log_text()
    assert "Patient's Name differs: 2 values in 4 instances" in json.dumps(rejected)
    for secret in (SURNAME, "Zweifelm", "Tarou", "王", "Müller", "P-90210"):
        assert secret not in told
    found = {number: set() for number in (*NAMES, TWO_PATIENTS)}
    for path in received.iterdir():
        header = dcmread(path, stop_before_pixels=True)
        name = header.get_item(tag_of("PatientName")).value
        number = int(header.StudyInstanceUID.split(".")[-2])
        found[number].add(header.Modality)
        assert name == padded(NAMES[number]["PatientName"], b"PN")
    assert found.pop(TWO_PATIENTS) == set()
    assert all(kinds == {"SEG", "SR", "RTSTRUCT", "OT", "DOC"} for kinds in found.values()), found
