"""The conformance statement agrees with the code and with the node on real associations, in real objects."""

from __future__ import annotations

import json
import re
import shutil
import socket
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, build_context
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import Verification

from dicom_node.cli import main
from dicom_node.conformance.samples import BASE, samples
from dicom_node.conformance.statement import conformance_statement, facts
from dicom_node.deliver.scu import classify
from dicom_node.receive.policy import STATUSES
from dicom_node.receive.scp import Listener
from dicom_node.settings import NodeSettings, ReceiveSettings, Settings, SourceSettings
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool
from tests.integration.receive.peer import pdu, pdv, pdv_command, pdv_data, store_command
from tests.support.sent_slices import ct_slice, encoded

if TYPE_CHECKING:
    from pydicom import Dataset

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "operators" / "conformance.md"
"""Regenerated with: dicom-node conformance --out docs/operators/conformance.md"""
STANDARD_SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)


@cache
def statement() -> str:
    return conformance_statement()


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    """The rows of the numbered tables, by column heading."""
    found = {}
    for number, block in re.findall(r"^Table ([\d-]+):[^\n]*\n\n((?:\|[^\n]*\n)+)", text, re.MULTILINE):
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        headings = [f"{name} {rows[0][:place].count(name) + 1}" for place, name in enumerate(rows[0])]
        found[number] = [dict(zip(headings, row, strict=True)) for row in rows[2:]]
    return found


@pytest.fixture(scope="module")
def stated() -> dict[str, list[dict[str, str]]]:
    return tables(DOCUMENT.read_text(encoding="utf-8"))


# ---- the document


def test_document_equals_the_generated_statement():
    assert DOCUMENT.read_text(encoding="utf-8") == statement(), (
        "dicom-node conformance --out docs/operators/conformance.md"
    )


def test_statement_has_the_standards_sections_in_order_with_a_linked_table_of_contents():
    text = statement()
    headings = re.findall(r"^#+ (\d[\d.]*) (.+)$", text, re.MULTILINE)
    numbers = [tuple(int(part) for part in number.split(".")) for number, _ in headings]
    assert numbers == sorted(numbers)
    assert {number for number in numbers if len(number) == 1} == {(n,) for n in range(1, 10)}
    linked = re.findall(r"^ *- \[(.+)\]\(#(.+)\)$", text, re.MULTILINE)
    assert [heading for heading, _ in linked] == [" ".join(heading) for heading in headings]
    for heading, anchor in linked:
        assert anchor == re.sub(r"[^a-z0-9\- ]", "", heading.lower()).replace(" ", "-")


def test_statement_says_research_software_and_claims_no_profile():
    text = statement()
    assert "Not a medical device, not cleared for clinical use" in text
    assert "no profile is claimed" in text


def test_statement_contains_no_path_of_the_machine_that_wrote_it():
    for found in (str(Path.home()), str(ROOT), socket.gethostname()):
        assert found not in statement()


# ---- the listener


@pytest.fixture(scope="module")
def port(tmp_path_factory) -> int:
    """A listener with the product's limits."""
    settings = Settings(
        node=NodeSettings(port=0, data_folder=tmp_path_factory.mktemp("node")),
        receive=ReceiveSettings(minimum_free_disk_bytes=0),
        sources=(SourceSettings(ae_title="SENDER"),),
    )
    spool = Spool(settings.spool_folder)
    ledger = Ledger(settings.effective_ledger_url, spool)
    listener = Listener(settings, spool, ledger.arrivals)
    listener.start()
    yield listener.port
    listener.stop()
    ledger.close()


def negotiated(port: int, proposed: list[tuple[str, str]], called: str = "DICOMNODE") -> tuple[socket.socket, list]:
    """An association, and the accepted ones of at most 128 pairs of abstract and transfer syntax."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = "SENDER", called
    contexts = []
    for number, pair in enumerate(proposed):
        context = build_context(*pair)
        context.context_id = 2 * number + 1
        contexts.append(context)
    request.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = "1.2.3"
    request.user_information = [length, implementation]
    connection = socket.create_connection(("127.0.0.1", port), timeout=15)
    connection.sendall(A_ASSOCIATE_RQ(request).encode())
    kind, body = read_pdu(connection)
    if kind != 2:
        return connection, [kind, *body[1:4]]
    answer = A_ASSOCIATE_AC()
    answer.decode(pdu(kind, body))
    return connection, [
        proposed[(each.context_id - 1) // 2] for each in answer.presentation_context if each.result == 0
    ]


def read_pdu(connection: socket.socket) -> tuple[int, bytes]:
    header = receive(connection, 6)
    return header[0], receive(connection, int.from_bytes(header[2:], "big"))


def receive(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        part = connection.recv(count - len(received))
        assert part, "closed"
        received += part
    return received


def test_listener_accepts_exactly_what_is_stated(port, stated):
    said = {(row["UID 1"], row["UID 2"]) for row in stated["4-1"]}
    syntaxes = {uid for _, uid in said} | {str(uid) for uid in STANDARD_SYNTAXES}
    syntaxes |= {str(uid) for context in AllStoragePresentationContexts for uid in context.transfer_syntax}
    syntaxes |= {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 91, 203)}
    classes = sorted(
        {str(context.abstract_syntax) for context in AllStoragePresentationContexts} | {uid for uid, _ in said}
    )
    every = [(sop_class, syntax) for sop_class in classes for syntax in sorted(syntaxes)]
    accepted = []
    for start in range(0, len(every), 128):
        connection, answer = negotiated(port, every[start : start + 128])
        connection.close()
        accepted += answer
    assert len(accepted) == len(stated["4-1"])
    assert set(accepted) == said


def test_listener_answers_with_exactly_the_stated_statuses(port, stated, tmp_path):
    """Each is provoked by its stated cause."""
    sound = ct_slice(1)
    uid, dataset = sound.SOPInstanceUID, encoded(sound, ExplicitVRLittleEndian)
    without_study = ct_slice(2)
    del without_study.StudyInstanceUID
    elsewhere = ct_slice(3)
    elsewhere.SOPInstanceUID = uid
    sent = {
        "0000": (store_command(CTImageStorage, uid), dataset),
        "0111": (store_command(CTImageStorage, uid), encoded(elsewhere, ExplicitVRLittleEndian)),
        "0117": (store_command(CTImageStorage, "no UID"), dataset),
        "0122": (store_command("1.2.840.10008.5.1.4.1.1.4", uid), dataset),
        "0211": (store_command(CTImageStorage, uid, field=0x0020), dataset),
        "A900": (
            store_command(CTImageStorage, without_study.SOPInstanceUID),
            encoded(without_study, ExplicitVRLittleEndian),
        ),
        "C000": (store_command(CTImageStorage, uid), dataset[:-5]),
    }
    answered = {status: answer(port, *message) for status, message in sent.items()}
    full = Settings(
        node=NodeSettings(port=0, data_folder=tmp_path),
        receive=ReceiveSettings(minimum_free_disk_bytes=shutil.disk_usage(tmp_path).total),
        sources=(SourceSettings(ae_title="SENDER"),),
    )
    spool = Spool(full.spool_folder)
    ledger = Ledger(full.effective_ledger_url, spool)
    listener = Listener(full, spool, ledger.arrivals)
    listener.start()
    answered["A700"] = answer(listener.port, *sent["0000"])
    listener.stop()
    ledger.close()
    assert answered == {status: status for status in answered}
    assert [row["status 1"] for row in stated["4-2"]] == sorted(answered)
    assert {f"{status:04X}" for status in STATUSES} == set(answered)


def answer(port: int, command: bytes, dataset: bytes) -> str:
    connection, _ = negotiated(port, [(CTImageStorage, ExplicitVRLittleEndian)])
    connection.sendall(pdv_command(1, command) + pdv_data(1, dataset, last=True))
    kind, body = read_pdu(connection)
    connection.close()
    assert kind == 4
    where = body.index(bytes.fromhex("00000009 02000000"))
    return f"{int.from_bytes(body[where + 8 : where + 10], 'little'):04X}"


def test_rejections_and_aborts_are_as_stated(port, stated):
    connection, rejected = negotiated(port, [(Verification, ImplicitVRLittleEndian)], called="SOMEBODY")
    connection.close()
    stated_rejections = [[int(row[f"{name} 1"]) for name in ("result", "source", "reason")] for row in stated["4-3"]]
    assert rejected[0] == 3
    assert rejected[1:] in stated_rejections
    stated_aborts = {int(row["reason 1"]) for row in stated["4-4"]}
    for fault in (pdu(0x42, b"abcd"), pdu(4, pdv(1, 2, b"abcd")), pdu(4, b"")):
        connection, _ = negotiated(port, [(Verification, ImplicitVRLittleEndian)])
        connection.sendall(fault)
        kind, body = read_pdu(connection)
        connection.close()
        assert (kind, body[2]) == (7, 2), "A-ABORT by the service provider"
        assert body[3] in stated_aborts


def test_listener_identifies_itself_as_stated(port):
    text = DOCUMENT.read_text(encoding="utf-8")
    entity = AE(ae_title="SENDER")
    entity.add_requested_context(Verification)
    association = entity.associate("127.0.0.1", port, ae_title="DICOMNODE")
    assert association.is_established
    acceptor = association.acceptor
    association.release()
    assert f"| Implementation Class UID | {acceptor.implementation_class_uid} |" in text
    assert f"| Implementation Version Name | {acceptor.implementation_version_name} |" in text
    assert f"| maximum PDU length received, in bytes | {acceptor.maximum_length} |" in text


# ---- delivery


def test_delivery_takes_every_status_as_stated(stated):
    rows = {row["status 1"]: row["behaviour 1"] for row in stated["4-8"]}
    for said, behaviour in rows.items():
        numbers = [int(part, 16) for part in re.findall(r"\b[0-9A-F]{4}\b", said)] or [0x0999]
        # of a range, its end: the beginning may have a special meaning
        meaning = classify(numbers[-1])
        assert behaviour == ("delivered" if meaning.delivered else "tried again" if meaning.retry else "refused"), said
    named = {int(said, 16) for said in rows if len(said) == 4}
    meanings = {status: (classify(status).delivered, classify(status).retry) for status in range(0x10000)}
    assert {status for status, meaning in meanings.items() if meaning[0] and status < 0xB000} <= named


def test_every_kind_of_object_can_be_proposed_as_stated(stated):
    proposed = {(row["UID 1"], row["UID 2"]) for row in stated["4-7"]}
    made = {(str(each.dataset.SOPClassUID), str(each.dataset.file_meta.TransferSyntaxUID)) for each in samples()}
    assert made <= proposed
    fallbacks = {(sop_class, str(ImplicitVRLittleEndian)) for sop_class, _ in made} | {
        (Verification, ImplicitVRLittleEndian)
    }
    assert proposed - made <= {(str(a), str(b)) for a, b in fallbacks}


# ---- objects


def test_every_object_has_every_attribute_required_by_the_standard():
    """Type 1 with a value and type 2, in mandatory modules and in sequences that are present (PS3.3)."""
    missing = set()
    for sample in samples():
        sop_class = str(sample.dataset.SOPClassUID)
        for module in get_iod_module_map()[get_sop_class_iod_map()[sop_class]]:
            for attribute in get_module_attribute_map()[module["key"]]:
                # each value type has its own macro of SR Document Content
                if module["usage"] != "M" or module["key"] == "sr-document-content":
                    continue
                if attribute["type"] not in ("1", "2"):
                    continue
                if attribute["path"] in FUNCTIONAL_GROUPS:
                    continue  # each macro is in one of the two, and its attributes are checked there
                for item in items_at(sample.dataset, attribute["path"]):
                    if is_missing(item, attribute):
                        missing.add((sample.kind.value, module["key"], *attribute["path"], attribute["keyword"]))
    assert sorted(missing) == []


FUNCTIONAL_GROUPS = (["SharedFunctionalGroupsSequence"], ["PerFrameFunctionalGroupsSequence"])


def items_at(dataset: Dataset, path: list[str]) -> list[Dataset]:
    found = [dataset]
    for keyword in path:
        found = [item for each in found for item in each.get(keyword) or ()]
    return found


def is_missing(item: Dataset, attribute: dict[str, str]) -> bool:
    if attribute["keyword"] not in item:
        return True
    return attribute["type"] == "1" and item[attribute["keyword"]].is_empty


def test_copied_and_fixed_attributes_are_as_stated_under_other_conditions():
    """The values are read from the data set itself, not through the code that made the statement."""
    created = {(each["kind"], each["modality"]): each for each in facts()["created"] if each["kind"] != "SC"}
    looked_at = 0
    for sample in samples():
        if sample.condition == BASE or sample.kind.value == "SC":
            continue
        for attribute in created[sample.kind.value, sample.dataset.Modality]["attributes"]:
            if len(attribute["path"]) > 1 or attribute["vr"] == "SQ":
                continue
            keyword = attribute["path"][0]
            own, of_source = sample.dataset.get(keyword), sample.source.get(keyword)
            if attribute["presence"] == "ALWAYS":
                assert own not in (None, ""), (sample.kind, keyword)
            if attribute["source"] == "COPY" and of_source not in (None, "") and own not in (None, ""):
                assert own == of_source, (sample.kind, keyword)
                looked_at += 1
            if attribute["source"] == "FIXED" and attribute["value"] and own not in (None, ""):
                text = "\\".join(map(str, own)) if sample.dataset[keyword].VM > 1 else str(own)
                assert text in attribute["value"].split(" or "), (sample.kind, keyword)
                looked_at += 1
    assert looked_at > 100


def test_no_object_has_private_attributes():
    for sample in samples():
        assert not [element.tag for element in sample.dataset.iterall() if element.tag.is_private], sample.kind


# ---- the command


def test_command_describes_the_product_or_the_configured_node(tmp_path):
    config = tmp_path / "node.yaml"
    config.write_text("{node: {ae_title: OTHER, port: 4242}, sources: [{ae_title: SCANNER1, addresses: [10.0.0.7]}]}")
    out = tmp_path / "statement.md"
    answered = CliRunner().invoke(main, ["--config", str(config), "conformance", "--out", str(out)])
    assert (answered.exit_code, answered.stdout) == (0, "")
    text = out.read_text()
    assert "OTHER | 127.0.0.1 | 4242" in text
    assert "SCANNER1 | 10.0.0.7" in text
    assert "| `node.port` | 11112 | at least 0, at most 65535 | 4242 |" in text


def test_unwritable_file_is_a_one_line_error(tmp_path):
    answered = CliRunner().invoke(main, ["conformance", "--out", str(tmp_path / "nowhere" / "statement.md")])
    assert answered.exit_code == 1
    assert "No such file or directory" in answered.stderr


def test_command_prints_json_for_programs():
    answered = json.loads(CliRunner().invoke(main, ["conformance", "--json"]).stdout)
    assert answered["ae_title"] == "DICOMNODE"
    assert {each["kind"] for each in answered["created"]} == {
        "SEG",
        "LABELMAP",
        "SR",
        "RTSTRUCT",
        "SC",
        "PDF",
        "NOTICE",
    }
