"""Command sets encoded and decoded, messages of every service, and invalid messages."""

from __future__ import annotations

import struct
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pynetdicom.dsutils import decode, encode

from dicom_node.errors import ProtocolFault
from dicom_node.network.dimse import (
    C_CANCEL_RQ,
    C_STORE_RQ,
    N_ACTION_RQ,
    N_EVENT_REPORT_RQ,
    Assembly,
    CommandSet,
    Element,
    Request,
    Response,
    store_request,
)
from dicom_node.network.pdu import Fragment

PUSH_MODEL = "1.2.840.10008.1.20.1"
UIDS = st.lists(st.integers(1, 10**8), min_size=1, max_size=6).map(lambda parts: ".".join(map(str, (1, *parts))))
NUMBERS = st.integers(0, 0xFFFF)
UID_ELEMENTS = [
    Element.AFFECTED_SOP_CLASS_UID,
    Element.REQUESTED_SOP_CLASS_UID,
    Element.AFFECTED_SOP_INSTANCE_UID,
    Element.REQUESTED_SOP_INSTANCE_UID,
]
COMMENTS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="\\"), max_size=64)
REQUIRED = {Element.COMMAND_FIELD: C_STORE_RQ, Element.COMMAND_DATA_SET_TYPE: 1, Element.MESSAGE_ID: 1}
OTHERS = [Element.PRIORITY, Element.STATUS, Element.EVENT_TYPE_ID, Element.ACTION_TYPE_ID]
COMMAND_SETS = st.fixed_dictionaries(
    dict.fromkeys(REQUIRED, NUMBERS) | {Element.MESSAGE_ID_BEING_RESPONDED_TO: NUMBERS},
    optional=dict.fromkeys(UID_ELEMENTS, UIDS) | dict.fromkeys(OTHERS, NUMBERS) | {Element.ERROR_COMMENT: COMMENTS},
)


@given(COMMAND_SETS)
def test_command_set_is_decoded_as_encoded(elements):
    command = CommandSet.decode(CommandSet.of(elements).encoded())
    for element, value in elements.items():
        assert (command.text(element) if isinstance(value, str) else command.number(element)) == value
    assert command == CommandSet.of(elements)


@given(COMMAND_SETS)
def test_command_sets_are_exchanged_with_pydicom(elements):
    ours = CommandSet.of(elements)
    theirs = decode(BytesIO(ours.encoded()), is_implicit_vr=True, is_little_endian=True)
    read = {element.tag.element: element.value for element in theirs if element.tag.element}
    assert {number: "" if value is None else value for number, value in read.items()} == elements
    again = Dataset()
    for element, value in elements.items():
        again.add_new((0, int(element)), "US" if isinstance(value, int) else theirs[0, int(element)].VR, value)
    assert CommandSet.decode(encode(again, is_implicit_vr=True, is_little_endian=True)) == ours


@given(st.binary(max_size=200))
def test_any_bytes_are_a_command_set_or_a_protocol_fault(encoded):
    try:
        command = CommandSet.decode(encoded)
    except ProtocolFault:
        return
    assert 0 <= command.message_id <= 0xFFFF
    assert command.has_data_set in (True, False)


@pytest.mark.parametrize("missing", REQUIRED)
def test_command_set_without_a_mandatory_element_is_a_protocol_fault(missing):
    encoded = CommandSet.of({element: value for element, value in REQUIRED.items() if element != missing}).encoded()
    with pytest.raises(ProtocolFault, match=f"{missing:04X}"):
        CommandSet.decode(encoded)


def test_group_length_counts_the_following_bytes():
    encoded = store_request("1.2.3", "1.2.3.4").command(7).encoded()
    assert struct.unpack_from("<HHII", encoded) == (0, 0, 4, len(encoded) - 12)


def test_store_request_and_its_response():
    request = store_request("1.2.3", "1.2.3.4").command(7)
    assert request.wants_response
    assert request.has_data_set
    response = Response(0xA700, "full").command(request)
    assert (response.field, response.message_id, response.has_data_set) == (0x8001, 7, False)
    assert (response.sop_class_uid, response.sop_instance_uid) == ("1.2.3", "1.2.3.4")
    assert response.number(Element.STATUS) == 0xA700
    assert response.text(Element.ERROR_COMMENT) == "full"
    assert not response.wants_response


def test_n_action_uses_requested_uids_and_its_response_affected_uids():
    """As required for Storage Commitment (PS3.4 J.3.2, PS3.7 10.1.4)."""
    request = Request(
        N_ACTION_RQ,
        {
            Element.REQUESTED_SOP_CLASS_UID: PUSH_MODEL,
            Element.REQUESTED_SOP_INSTANCE_UID: "1.2.840.10008.1.20.1.1",
            Element.ACTION_TYPE_ID: 1,
        },
        has_data_set=True,
    ).command(300)
    assert CommandSet.decode(request.encoded()) == request
    response = Response(0, elements={Element.ACTION_TYPE_ID: 1}, data_set=b"").command(request)
    assert response.field == 0x8130
    assert response.text(Element.AFFECTED_SOP_CLASS_UID) == PUSH_MODEL
    assert response.text(Element.AFFECTED_SOP_INSTANCE_UID) == "1.2.840.10008.1.20.1.1"
    assert response.number(Element.ACTION_TYPE_ID) == 1
    assert response.has_data_set


def test_n_event_report_is_answered_without_a_data_set():
    request = Request(
        N_EVENT_REPORT_RQ,
        {Element.AFFECTED_SOP_CLASS_UID: PUSH_MODEL, Element.EVENT_TYPE_ID: 2},
        has_data_set=True,
    ).command(1)
    response = Response(0, elements={Element.EVENT_TYPE_ID: 2}).command(request)
    assert (response.field, response.has_data_set) == (0x8100, False)
    assert Element.AFFECTED_SOP_INSTANCE_UID not in response.values


def test_cancel_has_no_response_and_refers_to_a_message():
    elements = {
        Element.COMMAND_FIELD: C_CANCEL_RQ,
        Element.MESSAGE_ID_BEING_RESPONDED_TO: 9,
        Element.COMMAND_DATA_SET_TYPE: 0x0101,
    }
    cancel = CommandSet.decode(CommandSet.of(elements).encoded())
    assert not cancel.wants_response
    assert cancel.message_id == 9


def test_invalid_uid_of_a_peer_is_repeated_up_to_the_length_of_a_uid():
    values = CommandSet.of(REQUIRED).values | {0x0002: b"\xff" * 70, 0x1000: b"1.2\n3"}
    response = Response(0x0122).command(CommandSet(values))
    assert len(response.values[Element.AFFECTED_SOP_CLASS_UID]) == 64
    assert CommandSet.decode(response.encoded()) == response


@given(st.data())
def test_message_may_arrive_in_fragments_of_any_size(data):
    command = store_request("1.2.3", "1.2.3.4").command(7)
    encoded = command.encoded()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)))))
    pieces = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    assembly = Assembly({5})
    whole = [
        assembly.take(Fragment(5, is_command=True, is_last=k == len(pieces) - 1, data=memoryview(piece)))
        for k, piece in enumerate(pieces)
    ]
    assert whole == [False] * (len(pieces) - 1) + [True]
    assert assembly.command == command
    assert not assembly.take(Fragment(5, is_command=False, is_last=True, data=memoryview(b"x")))
    assembly.end()
    assert not assembly.is_under_way


def test_fragments_out_of_order_or_on_another_context_are_a_protocol_fault():
    command = memoryview(store_request("1.2.3", "1.2.3.4").command(7).encoded())
    with pytest.raises(ProtocolFault, match="context 3"):
        Assembly({1}).take(Fragment(3, is_command=True, is_last=True, data=command))
    with pytest.raises(ProtocolFault, match="out of order"):
        Assembly({1}).take(Fragment(1, is_command=False, is_last=True, data=command))
    assembly = Assembly({1, 3})
    assembly.take(Fragment(1, is_command=True, is_last=True, data=command))
    with pytest.raises(ProtocolFault, match="context 3"):
        assembly.take(Fragment(3, is_command=False, is_last=True, data=command))
