"""Whether a destination accepts label maps: negotiated with real peers, remembered, never guessed."""

from __future__ import annotations

import pytest
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SegmentationStorage

from dicom_node.deliver.abilities import Abilities
from dicom_node.types import LABEL_MAP_SEGMENTATION_STORAGE
from tests.support.dicom_peers import destination, scripted_pacs
from tests.support.ports import free_port

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


def test_unreachable_peer_gets_binary_and_is_asked_again() -> None:
    port = free_port()
    abilities = Abilities("NODE")
    assert not abilities.accepts_labelmap(destination(port))
    with scripted_pacs(classes=BOTH, syntaxes=[RLELossless], port=port):
        assert abilities.accepts_labelmap(destination(port))
