"""One SOP Instance UID, twice on one association in two transfer syntaxes: is the second a copy or another image?

The listener does not decode and answers 0x0000 to both; routing tells them apart, before anything is segmented.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
import yaml
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, build_context

from dicom_node.app.working import open_pipeline
from dicom_node.pipeline.comparing import Comparing
from dicom_node.reading.reader import ImageReader
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.store.revisions import Member, Repeated
from dicom_node.store.states import JobState
from dicom_node.work.pool import WorkerPool
from tests.support.sent_slices import ct_slice
from tests.support.waiting import wait_until

NODE = {
    "completion": {"regular_quiet_s": 0, "otherwise_quiet_s": 0},
    "models": {"tissue": {"kind": "tissue"}},
}
RULES = {"rules": [{"name": "every", "model": "tissue", "when": []}]}


@pytest.fixture
def route(node, tmp_path):
    """Completes and routes what arrived; gives the jobs, newest first."""
    (tmp_path / "node.yaml").write_text(yaml.safe_dump(NODE))
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    settings = load_settings(tmp_path / "node.yaml")
    rules = load_rules(settings.rules_file, settings)
    with ImageReader() as reader:
        workers = WorkerPool(settings.models, settings.work)
        pipeline = open_pipeline(settings, node.ledger, node.spool, rules, workers, reader)

        def run():
            pipeline.completing.complete_due()
            pipeline.routing.route_complete()
            return [(job.state, job.reason) for job in node.ledger.overview.jobs(9)]

        yield run
        workers.close()


@pytest.fixture
def send(node):
    def together(*datasets):
        """Send on one association; every instance is accepted."""
        syntaxes = dict.fromkeys(each.file_meta.TransferSyntaxUID for each in datasets)
        entity = AE(ae_title="SENDER")
        association = entity.associate(
            "127.0.0.1", node.port, contexts=[build_context(CTImageStorage, each) for each in syntaxes], ae_title="NODE"
        )
        assert [association.send_c_store(each).Status for each in datasets] == [0] * len(datasets)
        association.release()
        wait_until(lambda: all(each.closed_at for each in node.associations()))

    return together


def in_syntax(dataset, syntax, **changes):
    """A copy in another transfer syntax, with other values of attributes."""
    copy = deepcopy(dataset)
    for keyword, value in changes.items():
        setattr(copy, keyword, value)
    if syntax.is_encapsulated:
        copy.compress(syntax, generate_instance_uid=False)
    copy.file_meta.TransferSyntaxUID = syntax
    return copy


def other_pixels(dataset):
    return bytes([dataset.PixelData[0] ^ 1]) + dataset.PixelData[1:]


def member_of(row):
    return Member(row.dataset_sha256, row.transfer_syntax_uid, row.pixels_sha256, row.spool_name)


@pytest.fixture
def slices():
    return [ct_slice(number, rows=32) for number in range(5)]


@pytest.mark.parametrize(
    "syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless, ImplicitVRLittleEndian], ids=lambda uid: uid.name
)
def test_a_second_image_in_another_syntax_rejects_the_series(send, route, slices, syntax):
    image = slices[2]
    send(*slices, in_syntax(image, syntax, PixelData=other_pixels(image)))
    ((state, reason),) = route()
    assert state is JobState.REJECTED
    assert f"SOP Instance UID {image.SOPInstanceUID} was sent twice in one association" in reason
    assert "two images, one UID" in reason


@pytest.mark.parametrize("syntax", [JPEGLSLossless, ImplicitVRLittleEndian], ids=lambda uid: uid.name)
def test_a_recoded_image_is_a_correction(node, send, route, slices, syntax):
    send(*slices, in_syntax(slices[2], syntax, SeriesDescription="recoded"))
    assert route() == [(JobState.QUEUED, "")]
    assert [row.current for row in node.rows()] == [True, True, False, True, True, True]


def test_the_first_image_sent_once_more_does_not_hide_the_second(send, route, slices):
    image = slices[2]
    send(*slices, in_syntax(image, JPEGLSLossless, PixelData=other_pixels(image)), image)
    ((state, reason),) = route()
    assert (state, "two images" in reason) == (JobState.REJECTED, True)


def test_pixels_that_cannot_be_decoded_cannot_be_compared(send, route, slices):
    broken = in_syntax(slices[2], JPEGLSLossless)
    broken.PixelData = encapsulate([b"no codestream"])
    send(*slices, broken)
    ((state, reason),) = route()
    assert state is JobState.REJECTED
    assert "the two images can't be compared" in reason


def test_the_next_association_corrects_the_series(send, route, slices):
    image = slices[2]
    send(*slices, in_syntax(image, JPEGLSLossless, PixelData=other_pixels(image)))
    assert route()[0][0] is JobState.REJECTED
    send(image)
    assert route()[0] == (JobState.QUEUED, "")


def test_other_pixels_on_another_association_are_a_correction_in_every_syntax(send, route, slices):
    image = slices[2]
    send(*slices)
    send(in_syntax(image, JPEGLSLossless, PixelData=other_pixels(image)))
    assert route() == [(JobState.QUEUED, "")]


def test_copies_in_one_syntax_are_not_decoded(node, send, route, slices):
    assert slices[2].file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    send(*slices, in_syntax(slices[2], ExplicitVRLittleEndian, SeriesDescription="corrected"))
    for row in node.rows():
        if not row.current:
            node.spool.path(row.spool_name).unlink()
    assert route() == [(JobState.QUEUED, "")]


def test_each_of_several_copies_is_decoded_once(node, send, slices):
    image = slices[2]
    send(*slices, *(in_syntax(image, JPEGLSLossless, SeriesDescription=f"copy {k}") for k in range(3)))
    (now,) = [member_of(row) for row in node.rows() if row.current and row.sop_instance_uid == image.SOPInstanceUID]
    before = [member_of(row) for row in node.rows() if not row.current]
    with ImageReader() as reader:
        comparing = Comparing(node.spool, reader, image.SeriesInstanceUID)
        comparing.refuse_other_pixels([Repeated(image.SOPInstanceUID, before[0], now)])
        for member in (before[0], now):
            node.spool.path(member.spool_name).unlink()
        comparing.refuse_other_pixels([Repeated(image.SOPInstanceUID, before[0], now)])
