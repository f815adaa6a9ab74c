"""PDUs encoded and decoded, and hostile ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.errors import ProtocolFault
from dicom_node.network import pdu
from dicom_node.network.pdu import (
    AbortReason,
    AnsweredContext,
    AssociationAcceptance,
    AssociationRequest,
    ContextResult,
    ProposedContext,
    Rejection,
    Roles,
)

UIDS = st.lists(st.integers(1, 10**8), min_size=1, max_size=6).map(lambda parts: ".".join(map(str, (1, *parts))))
AE_TITLES = st.text("AZ09_", min_size=1, max_size=16)
LENGTHS = st.integers(0, 2**32 - 1)
ROLES = st.dictionaries(UIDS, st.sampled_from([Roles(), Roles(scu=False, scp=True), Roles(scp=True)]), max_size=5)
CONTEXT_IDS = st.lists(st.integers(0, 127).map(lambda k: 2 * k + 1), min_size=1, max_size=5, unique=True)


def body(encoded: bytes) -> memoryview:
    kind, length = pdu.HEADER.unpack_from(encoded)
    assert kind in pdu.KNOWN_TYPES
    assert length == len(encoded) - pdu.HEADER.size
    return memoryview(encoded)[pdu.HEADER.size :]


@given(st.data(), AE_TITLES, AE_TITLES, CONTEXT_IDS, LENGTHS, ROLES)
def test_association_request_is_decoded_as_encoded(data, calling, called, ids, largest, roles):
    syntaxes = st.lists(UIDS, min_size=1, max_size=4, unique=True).map(tuple)
    contexts = tuple(ProposedContext(k, data.draw(UIDS), data.draw(syntaxes)) for k in ids)
    request = AssociationRequest(calling, called, contexts, largest, roles)
    assert AssociationRequest.decode(body(request.encoded())) == request


@given(st.data(), AE_TITLES, AE_TITLES, CONTEXT_IDS, LENGTHS, ROLES)
def test_acceptance_is_decoded_as_encoded(data, calling, called, ids, largest, roles):
    contexts = tuple(AnsweredContext(k, data.draw(st.sampled_from(list(ContextResult))), data.draw(UIDS)) for k in ids)
    acceptance = AssociationAcceptance(calling, called, contexts, largest, roles)
    decoded = AssociationAcceptance.decode(body(acceptance.encoded()))
    assert (decoded.calling_ae, decoded.called_ae, decoded.roles) == (calling, called, roles)
    assert decoded.largest_pdu == largest
    assert [(c.context_id, c.result) for c in decoded.contexts] == [(c.context_id, c.result) for c in contexts]
    accepted = [c for c in contexts if c.result == ContextResult.ACCEPTED]
    assert [c for c in decoded.contexts if c.result == ContextResult.ACCEPTED] == accepted


@pytest.mark.parametrize("decode", [AssociationRequest.decode, AssociationAcceptance.decode, Rejection.decode])
@given(content=st.binary(max_size=300))
def test_any_bytes_are_decoded_or_a_protocol_fault(decode, content):
    try:
        decode(memoryview(content))
    except ProtocolFault as fault:
        assert fault.abort_reason == AbortReason.INVALID_PARAMETER  # noqa: PT017 - both ways out are right


@given(st.integers(1, 2), st.integers(1, 3), st.sampled_from([1, 2]))
def test_rejection_is_decoded_as_encoded(result, source, diagnostic):
    rejection = Rejection(result, source, diagnostic)
    assert Rejection.decode(body(rejection.encoded())) == rejection
    assert rejection.is_permanent == (result == 1)


def test_rejection_with_unknown_codes_is_described_too():
    assert Rejection.decode(memoryview(b"\0\x09\x09\x09")).term == "unknown reason 9 of source 9"


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 3), st.binary(max_size=50)), min_size=1, max_size=8))
def test_fragments_are_decoded_as_encoded(parts):
    joined = b"".join(bytes(body(pdu.p_data(context_id, control, data))) for context_id, control, data in parts)
    found = [(f.context_id, f.is_command | f.is_last << 1, bytes(f.data)) for f in pdu.fragments(memoryview(joined))]
    assert found == [(context_id, control, data) for context_id, control, data in parts]


@given(st.binary(max_size=100))
def test_fragments_of_any_bytes_cover_them_or_are_a_protocol_fault(content):
    try:
        found = list(pdu.fragments(memoryview(content)))
    except ProtocolFault:
        return
    assert sum(len(fragment.data) + pdu.PDV_HEADER.size for fragment in found) == len(content)
