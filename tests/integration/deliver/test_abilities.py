"""Whether a destination accepts label maps: negotiated with real peers, remembered, never guessed."""

from __future__ import annotations

import threading

import pytest
import structlog
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SegmentationStorage

from dicom_node.deliver.abilities import Abilities
from dicom_node.network.questions import PAUSE_S
from dicom_node.pipeline.delivering import Asking
from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE, ResultRequest, SegmentationForm
from tests.support.dicom_peers import destination, raw_peer, scripted_pacs
from tests.support.ports import free_port
from tests.support.waiting import wait_until

BOTH = (SegmentationStorage, LABEL_MAP_SEGMENTATION_STORAGE)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("classes", "syntaxes", "accepts"),
    [
        (BOTH, [ExplicitVRLittleEndian, RLELossless], True),
        (BOTH, [ExplicitVRLittleEndian], False),
        ((SegmentationStorage,), [ExplicitVRLittleEndian, RLELossless], False),
    ],
    ids=["everything", "no RLE", "no label map"],
)
def test_negotiation_with_the_peer_decides(classes, syntaxes, accepts) -> None:
    with scripted_pacs(classes=classes, syntaxes=syntaxes) as (port, stored):
        assert Abilities("NODE").accepts_labelmap(destination(port)) is accepts
    assert stored == []


def test_answer_is_remembered_for_a_while() -> None:
    port, clock = free_port(), Clock()
    abilities = Abilities("NODE", clock)
    with scripted_pacs(classes=BOTH, syntaxes=[RLELossless], port=port):
        assert abilities.accepts_labelmap(destination(port))
    clock.now += 599
    assert abilities.accepts_labelmap(destination(port))
    clock.now += 2
    assert not abilities.accepts_labelmap(destination(port))


def test_unreachable_peer_gets_binary_and_is_asked_again_in_the_background() -> None:
    port, clock = free_port(), Clock()
    abilities = Abilities("NODE", clock)
    with structlog.testing.capture_logs() as log:
        for _ in range(3):
            assert not abilities.accepts_labelmap(destination(port))
    assert [line["event"] for line in log] == ["destination.silent"], "asked once"
    with scripted_pacs(classes=BOTH, syntaxes=[RLELossless], port=port):
        assert not abilities.accepts_labelmap(destination(port))
        clock.now += PAUSE_S
        wait_until(lambda: abilities.accepts_labelmap(destination(port)))


def test_silent_peer_is_waited_for_once(monkeypatch) -> None:
    monkeypatch.setattr("dicom_node.deliver.abilities.LIMIT_S", 0.3)
    called, go_on = [], threading.Event()

    def say_nothing(_connection):
        called.append(1)
        go_on.wait(60)

    with raw_peer(say_nothing) as port:
        patient = destination(port, connect_timeout_s=600, response_timeout_s=600)
        abilities = Abilities("NODE")
        for _ in range(10):
            assert not abilities.accepts_labelmap(patient)
        go_on.set()
    assert len(called) == 1


def test_peers_of_one_job_are_asked_at_the_same_time() -> None:
    both_are_here = threading.Barrier(2)

    def wait_for_the_other(_connection):
        both_are_here.wait(60)

    auto = ResultRequest(SegmentationForm.AUTO)
    with raw_peer(wait_for_the_other) as first, raw_peer(wait_for_the_other) as second:
        asking = Asking({"a": destination(first), "b": destination(second)}, Abilities("NODE"))
        answered = asking.answered({"a": auto, "b": auto})
    assert not both_are_here.broken
    assert {request.segmentation for request in answered.values()} == {SegmentationForm.BINARY}
