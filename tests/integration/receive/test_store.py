"""Real associations: what is stored, what is refused, and which status or reason is sent."""

from __future__ import annotations

import os
import shutil
import subprocess
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from io import BytesIO

import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    MRImageStorage,
    RLELossless,
)
from pynetdicom import AE, build_context
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification

from tests.support.sent_slices import ct_slice, dataset_bytes, encoded
from tests.support.waiting import wait_until

from .peer import Peer, pdv_command, pdv_data, store_command

LOSSLESS = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEG2000Lossless,
    HTJ2KLossless,
]


def associate(node, contexts, calling="SENDER", called="NODE"):
    entity = AE(ae_title=calling)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
    return entity.associate("127.0.0.1", node.port, contexts=contexts, ae_title=called)


def send(
    node, data: bytes, sop_instance: str, syntax=ExplicitVRLittleEndian, sop_class=CTImageStorage, context_class=None
):
    """C-STORE of exactly these bytes, valid or not; the status, or None where the association ended."""
    association = associate(node, [build_context(context_class or sop_class, syntax)])
    assert association.is_established
    request = C_STORE()
    request.MessageID = 7
    request.AffectedSOPClassUID = sop_class
    request._affected_sop_instance_uid = (
        sop_instance  # the property setter would refuse the values that a hostile peer sends
    )
    request.Priority = 2
    request.DataSet = BytesIO(data)
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    return None if response is None else response.Status


# ---- stored unchanged


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name)
def test_every_lossless_syntax_is_stored_byte_for_byte(node, syntax):
    dataset = ct_slice(3)
    if syntax.is_encapsulated:
        dataset.PixelData = encapsulate([b"not looked at by the listener", b"odd"])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    sent = encoded(dataset, syntax)
    assert send(node, sent, dataset.SOPInstanceUID, syntax) == 0x0000
    (row,) = node.rows()
    path = node.spool.path(row.spool_name)
    assert dataset_bytes(path) == sent
    meta = dcmread(path, stop_before_pixels=True).file_meta
    assert meta.TransferSyntaxUID == syntax == row.transfer_syntax_uid
    assert meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert (row.position_mm, row.instance_number, row.size_bytes) == (6.0, 3, len(sent))
    assert path.stat().st_mode & 0o777 == 0o600
    node.assert_consistent()


def test_series_sent_by_dcmtk_is_stored(node, ct_files):
    command = ["storescu", "-aet", "SENDER", "-aec", "NODE", "127.0.0.1", str(node.port), *map(str, ct_files)]
    subprocess.run(command, check=True, timeout=60)
    assert len(node.rows()) == len(ct_files)
    assert {row.position_mm for row in node.rows()} == {2.0 * k for k in range(10)}
    node.assert_consistent()
    wait_until(lambda: [a.aborted for a in node.associations() if a.closed_at] == [False])


def test_identical_copy_changes_nothing_and_other_bytes_replace(node):
    dataset = ct_slice(1)
    for _ in range(3):
        assert send(node, encoded(dataset, ExplicitVRLittleEndian), dataset.SOPInstanceUID) == 0
    (row,) = node.rows()
    assert row.duplicates == 2
    node.assert_consistent()
    dataset.SeriesDescription = "corrected"
    assert send(node, encoded(dataset, ExplicitVRLittleEndian), dataset.SOPInstanceUID) == 0
    assert [row.current for row in node.rows()] == [False, True]
    node.assert_consistent()


def test_identical_copy_takes_the_place_of_a_file_that_is_gone(node):
    """An instance is not acknowledged whose only bytes would then be deleted."""
    dataset = ct_slice(1)
    data, uid = encoded(dataset, ExplicitVRLittleEndian), dataset.SOPInstanceUID
    assert send(node, data, uid) == 0
    (row,) = node.rows()
    path = node.spool.path(row.spool_name)
    shutil.rmtree(path.parent)
    assert send(node, data, uid) == 0
    (row,) = node.rows()
    assert (row.duplicates, dataset_bytes(path)) == (1, data)
    node.assert_consistent()


def send_together(node, datasets):
    """Send on one association; return the statuses."""
    association = associate(node, [build_context(CTImageStorage)])
    statuses = [association.send_c_store(dataset).Status for dataset in datasets]
    association.release()
    wait_until(lambda: all(each.closed_at for each in node.associations()))
    return statuses


def the_evidence(node):
    (revision,) = node.ledger.arrivals.due_revisions(datetime.now(UTC) + timedelta(hours=1))
    return revision.evidence


@pytest.mark.parametrize("at_once", [True, False], ids=["one association", "an association each"])
def test_one_uid_for_several_images_is_refused_from_the_second_on(node, at_once):
    slices = [ct_slice(number) for number in range(6)]
    for each in slices[4:]:
        each.SOPInstanceUID = each.file_meta.MediaStorageSOPInstanceUID = slices[3].SOPInstanceUID
    statuses = send_together(node, slices) if at_once else [send_together(node, [each])[0] for each in slices]
    assert statuses == [0, 0, 0, 0, 0x0111, 0x0111]
    assert [row.position_mm for row in node.rows()] == [0.0, 2.0, 4.0, 6.0]
    assert the_evidence(node).refused_instances == 2
    node.assert_consistent()


def test_other_pixels_under_a_known_uid_are_a_correction_only_on_another_association(node):
    first, second = ct_slice(1), ct_slice(1)
    second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
    second.PixelData = bytes(len(second.PixelData))
    header_only = deepcopy(first)
    header_only.SeriesDescription = "sent twice"
    assert send_together(node, [first, second, header_only]) == [0, 0x0111, 0]
    assert send_together(node, [second]) == [0x0111], "it was refused before"
    second.PixelData = bytes([1]) * len(second.PixelData)
    assert send_together(node, [second]) == [0]
    assert [row.current for row in node.rows()] == [False, False, True]
    assert the_evidence(node).refused_instances == 0
    node.assert_consistent()


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGLSLossless], ids=lambda uid: uid.name
)
def test_other_pixels_under_a_known_uid_are_detected_in_every_syntax(node, syntax):
    peer = Peer(node.port, syntax=syntax)

    def store(description, pixels):
        dataset = ct_slice(1)
        dataset.SOPInstanceUID, dataset.SeriesDescription = "1.2.3.4.5", description
        dataset.PixelData = encapsulate([pixels]) if syntax.is_encapsulated else pixels
        dataset["PixelData"].VR = "OB" if syntax.is_encapsulated else "OW"
        dataset["PixelData"].is_undefined_length = syntax.is_encapsulated
        peer.send(pdv_command(1, store_command(CTImageStorage, dataset.SOPInstanceUID)))
        peer.send(pdv_data(1, encoded(dataset, syntax), last=True))
        return peer.status()

    assert [store("first", bytes(512)), store("first", bytes(511) + b"1"), store("second", bytes(512))] == [
        0,
        0x0111,
        0,
    ]
    peer.close()


def test_instances_refused_for_a_full_disk_are_evidence_until_they_arrive(node, monkeypatch):
    slices = [ct_slice(number) for number in range(6)]
    with monkeypatch.context() as full:
        association = associate(node, [build_context(CTImageStorage)])
        assert [association.send_c_store(each).Status for each in slices[:4]] == [0] * 4
        full.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 0))
        wait_until(lambda: association.send_c_store(slices[4]).Status == 0xA700)
        assert association.send_c_store(slices[5]).Status == 0xA700
        association.release()
        wait_until(lambda: the_evidence(node).open_associations == 0)
    assert the_evidence(node).refused_instances == 2
    wait_until(lambda: send_together(node, slices[4:]) == [0, 0])
    assert the_evidence(node).refused_instances == 0


def test_instance_refused_for_a_locked_ledger_is_evidence(start_node, monkeypatch):
    monkeypatch.setattr("dicom_node.store.database._BUSY_TIMEOUT_MS", 100)
    node = start_node()
    slices = [ct_slice(number) for number in range(2)]
    assert send_together(node, slices[:1]) == [0]
    association = associate(node, [build_context(CTImageStorage)])
    with node.ledger.database.write():
        assert association.send_c_store(slices[1]).Status == 0xA700
    association.release()
    wait_until(lambda: the_evidence(node).refused_instances == 1)
    assert send_together(node, slices[1:]) == [0]
    assert the_evidence(node).refused_instances == 0


def test_damaged_instance_is_evidence(node):
    whole = ct_slice(1)
    assert send_together(node, [whole]) == [0]
    damaged = encoded(ct_slice(2), ExplicitVRLittleEndian)[:-100]
    assert send(node, damaged, "1.2.3.4.5") == 0xC000
    wait_until(lambda: the_evidence(node).refused_instances == 1)


def test_large_multi_frame_instance_is_stored(node):
    dataset = ct_slice(1, rows=512)
    dataset.SOPClassUID = EnhancedCTImageStorage
    dataset.NumberOfFrames = 40
    dataset.PixelData = os.urandom(512 * 512 * 2 * 40)
    sent = encoded(dataset, ExplicitVRLittleEndian)
    assert send(node, sent, dataset.SOPInstanceUID, sop_class=EnhancedCTImageStorage) == 0
    assert node.rows()[0].number_of_frames == 40
    node.assert_consistent()


# ---- who is admitted, and for what


@pytest.mark.parametrize(
    ("calling", "called", "reason"),
    [
        ("STRANGER", "NODE", "Calling AE Title Not Recognized"),
        ("sender", "NODE", "Calling AE Title Not Recognized"),
        ("ELSEWHERE", "NODE", "Calling AE Title Not Recognized"),
        ("SENDER", "OTHER", "Called AE Title Not Recognized"),
    ],
)
def test_unknown_peers_are_rejected_with_the_reason(node, calling, called, reason):
    command = ["echoscu", "-v", "-aet", calling, "-aec", called, "127.0.0.1", str(node.port)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode
    assert "Rejected Permanent" in result.stderr
    assert reason in result.stderr


def test_services_per_source(node):
    association = associate(node, [build_context(Verification), build_context(CTImageStorage)], calling="ECHOONLY")
    assert [context.abstract_syntax for context in association.accepted_contexts] == [Verification]
    assert association.send_c_echo().Status == 0
    association.release()


def test_only_syntaxes_that_can_be_stored_exactly_are_negotiated(node):
    unwanted = [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEG2000, JPEGLSNearLossless]
    contexts = [build_context(MRImageStorage, ExplicitVRLittleEndian), build_context("1.2.3.4.999")]
    contexts += [build_context(CTImageStorage, syntax) for syntax in unwanted]
    association = associate(node, [*contexts, build_context(CTImageStorage, [*unwanted, ImplicitVRLittleEndian])])
    assert [context.transfer_syntax for context in association.accepted_contexts] == [[ImplicitVRLittleEndian]]
    assert [context.result for context in association.rejected_contexts] == [3, 3, 4, 4, 4, 4]
    association.release()


def test_rejection_above_the_association_limit_is_transient(start_node):
    node = start_node(maximum_associations=2)
    held = [associate(node, [build_context(Verification)]) for _ in range(2)]
    command = ["echoscu", "-v", "-aet", "SENDER", "-aec", "NODE", "127.0.0.1", str(node.port)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "Rejected Transient" in result.stderr
    assert "Local Limit Exceeded" in result.stderr
    for association in held:
        association.release()
    wait_until(lambda: subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0)


# ---- refused with the reason, nothing stored


def refusals():
    def changed(**values):
        dataset = ct_slice(1)
        dataset.SOPInstanceUID = "1.2.3.4.5"
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                # written as text, so that pydicom does not validate the value
                dataset.add_new(keyword, "LO", value)
        return encoded(dataset, ImplicitVRLittleEndian)

    good = changed()
    yield "empty data set UID", changed(SOPInstanceUID=None), "1.2.3.4.5", 0xA900
    yield "another UID in the data set", changed(SOPInstanceUID="1.2.3.4.6"), "1.2.3.4.5", 0xA900
    yield "path in the data set", changed(SOPInstanceUID="../../x"), "1.2.3.4.5", 0xA900
    yield "MR sent as CT", changed(SOPClassUID=MRImageStorage), "1.2.3.4.5", 0xA900
    yield "path as series", changed(SeriesInstanceUID="../../../tmp/x"), "1.2.3.4.5", 0xA900
    yield "series UID of 65 characters", changed(SeriesInstanceUID="1." * 32 + "1"), "1.2.3.4.5", 0xA900
    yield "no series", changed(SeriesInstanceUID=None), "1.2.3.4.5", 0xA900
    yield "empty study", changed(StudyInstanceUID=""), "1.2.3.4.5", 0xA900
    yield "two components without digit", changed(StudyInstanceUID="1..2"), "1.2.3.4.5", 0xA900
    yield "missing last byte", good[:-1], "1.2.3.4.5", 0xC000
    yield "half", good[: len(good) // 2], "1.2.3.4.5", 0xC000
    yield "trailing junk", good + b"junk", "1.2.3.4.5", 0xC000
    for uid in ("../x", "/etc/x", "..\\x", "1..2", "1.2\n3", "x" * 64):
        yield f"command UID {uid!r}", changed(SOPInstanceUID=uid), uid, 0x0117


REFUSALS = {name: case for name, *case in refusals()}


@pytest.mark.parametrize(("data", "uid", "status"), REFUSALS.values(), ids=REFUSALS)
def test_faulty_instance_is_refused_with_the_reason_and_not_stored(node, data, uid, status):
    assert send(node, data, uid, ImplicitVRLittleEndian) == status
    assert node.rows() == []
    assert node.files() == set()
    good = ct_slice(2)
    assert send(node, encoded(good, ExplicitVRLittleEndian), good.SOPInstanceUID) == 0


@pytest.mark.parametrize(("sop_class", "status"), [(MRImageStorage, 0x0122), (EnhancedCTImageStorage, 0xA900)])
def test_sop_class_of_the_command_must_be_that_of_the_context(node, sop_class, status):
    dataset = ct_slice(1)
    data = encoded(dataset, ExplicitVRLittleEndian)
    assert send(node, data, dataset.SOPInstanceUID, sop_class=sop_class, context_class=CTImageStorage) == status
    assert node.files() == set()


def test_instance_above_the_size_limit_is_aborted_and_not_stored(start_node):
    node = start_node(maximum_instance_bytes=200_000)
    dataset = ct_slice(1, rows=512)
    association = associate(node, [build_context(CTImageStorage)])
    assert "Status" not in association.send_c_store(dataset)
    wait_until(lambda: association.is_aborted)
    wait_until(lambda: node.files() == set())
    small = ct_slice(2)
    assert send(node, encoded(small, ExplicitVRLittleEndian), small.SOPInstanceUID) == 0


def test_below_the_disk_reserve_every_instance_is_answered_with_out_of_resources(start_node):
    full = start_node(minimum_free_disk_bytes=1 << 60)
    dataset = ct_slice(1)
    assert send(full, encoded(dataset, ExplicitVRLittleEndian), dataset.SOPInstanceUID) == 0xA700
    assert full.files() == set()


# ---- the disk and the ledger


def test_locked_ledger_is_answered_with_a700_while_echo_works(start_node, monkeypatch):
    monkeypatch.setattr("dicom_node.store.database._BUSY_TIMEOUT_MS", 100)
    node = start_node()
    dataset = ct_slice(1)
    data = encoded(dataset, ExplicitVRLittleEndian)
    with node.ledger.database.write():
        assert send(node, data, dataset.SOPInstanceUID) == 0xA700
        echo = associate(node, [build_context(Verification)])
        assert echo.send_c_echo().Status == 0
        echo.release()
    assert node.rows() == []
    assert send(node, data, dataset.SOPInstanceUID) == 0
    assert len(node.rows()) == 1
