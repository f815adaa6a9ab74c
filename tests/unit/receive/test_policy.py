"""Who is admitted, and what is negotiated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.network.acceptor import Refused
from dicom_node.receive.policy import admit, may_connect
from dicom_node.settings import SourceSettings

SCANNER = SourceSettings(ae_title="SCANNER", addresses=("10.1.0.0/16", "2001:db8::7"))
ANYWHERE = SourceSettings(ae_title="ANYWHERE")


@pytest.mark.parametrize(
    ("calling", "called", "address", "admitted"),
    [
        ("SCANNER", "NODE", "10.1.2.3", SCANNER),
        (" SCANNER ", "NODE  ", "10.1.2.3", SCANNER),
        ("SCANNER", "NODE", "::ffff:10.1.2.3", SCANNER),
        ("SCANNER", "NODE", "2001:db8::7", SCANNER),
        ("ANYWHERE", "NODE", "192.0.2.1", ANYWHERE),
        ("SCANNER", "NODE", "10.2.0.1", (1, 1, 3)),
        ("SCANNER", "NODE", "2001:db8::8", (1, 1, 3)),
        ("scanner", "NODE", "10.1.2.3", (1, 1, 3)),
        ("", "NODE", "10.1.2.3", (1, 1, 3)),
        ("SCANNER", "node", "10.1.2.3", (1, 1, 7)),
        ("SCANNER", "", "10.1.2.3", (1, 1, 7)),
        ("SCANNER\n", "NODE", "10.1.2.3", (1, 1, 3)),
        ("SCANNER\0", "NODE", "10.1.2.3", (1, 1, 3)),
        ("SCANNER", "\tNODE", "10.1.2.3", (1, 1, 7)),
    ],
)
def test_admission(calling, called, address, admitted):
    verdict = admit((SCANNER, ANYWHERE), "NODE", calling, called, address)
    if isinstance(verdict, Refused):
        verdict = (verdict.rejection.result, verdict.rejection.source, verdict.rejection.diagnostic)
    assert verdict == admitted


@pytest.mark.parametrize(
    ("sources", "address", "may"),
    [
        ((SCANNER,), "10.1.2.3", True),
        ((SCANNER,), "::ffff:10.1.2.3", True),
        ((SCANNER,), "10.2.0.1", False),
        ((SCANNER,), "fe80::1%lo", False),
        ((SCANNER, ANYWHERE), "10.2.0.1", True),
        ((), "127.0.0.1", False),
    ],
)
def test_addresses_from_which_no_source_may_come(sources, address, may):
    assert may_connect(sources, address) is may


@given(st.text(max_size=16))
def test_without_sources_nobody_is_admitted(calling):
    assert isinstance(admit((), "NODE", calling, "NODE", "127.0.0.1"), Refused)
