"""Presentation contexts and roles (PS3.8 9.3.3.2, PS3.7 D.3.3.4)."""

from __future__ import annotations

import pytest

from dicom_node.network.acceptor import Served, accepted_contexts, negotiate
from dicom_node.network.pdu import AssociationRequest, ContextResult, ProposedContext, Roles

CT, EVENTS, OTHER = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.20.1", "1.2.3"
IMPLICIT, EXPLICIT, RLE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"
SCU, SCP, BOTH = Roles(), Roles(scu=False, scp=True), Roles(scu=True, scp=True)
SERVED = {
    CT: Served(frozenset({IMPLICIT, EXPLICIT})),
    EVENTS: Served(frozenset({IMPLICIT}), requestor_roles=SCP),
}


def request(*contexts: tuple[str, tuple[str, ...]], roles: dict[str, Roles] | None = None) -> AssociationRequest:
    proposed = tuple(ProposedContext(2 * k + 1, *context) for k, context in enumerate(contexts))
    return AssociationRequest("PEER", "NODE", proposed, 16382, roles or {})


@pytest.mark.parametrize(
    ("context", "result", "syntax"),
    [
        ((CT, (RLE, EXPLICIT, IMPLICIT)), ContextResult.ACCEPTED, EXPLICIT),
        ((CT, (IMPLICIT, EXPLICIT)), ContextResult.ACCEPTED, IMPLICIT),
        ((CT, (RLE,)), ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED, IMPLICIT),
        ((OTHER, (EXPLICIT,)), ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED, IMPLICIT),
    ],
)
def test_first_supported_syntax_is_accepted(context, result, syntax):
    (answer,) = negotiate(request(context), SERVED, 131072).contexts
    assert (answer.context_id, answer.result, answer.transfer_syntax) == (1, result, syntax)


@pytest.mark.filterwarnings("error")
def test_nothing_is_kept_of_texts_that_are_no_uid():
    """pydicom warns of each, and Python keeps every text that was warned of: 50 kB for each request of 128."""
    asked = request((CT, ("no UID",)), (OTHER, ("1.2..3",)))
    assert b"no UID" not in negotiate(asked, SERVED, 131072).encoded()


@pytest.mark.parametrize(
    ("abstract_syntax", "proposed", "granted", "result"),
    [
        (CT, None, None, ContextResult.ACCEPTED),
        (CT, SCU, SCU, ContextResult.ACCEPTED),
        (CT, BOTH, SCU, ContextResult.ACCEPTED),
        (CT, SCP, None, ContextResult.USER_REJECTION),
        (EVENTS, None, None, ContextResult.USER_REJECTION),
        (EVENTS, SCP, SCP, ContextResult.ACCEPTED),
        (EVENTS, BOTH, SCP, ContextResult.ACCEPTED),
        (OTHER, BOTH, None, ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED),
    ],
)
def test_role_is_granted_if_proposed_and_allowed(abstract_syntax, proposed, granted, result):
    roles = {} if proposed is None else {abstract_syntax: proposed}
    asked = request((abstract_syntax, (IMPLICIT,)), roles=roles)
    acceptance = negotiate(asked, SERVED, 131072)
    assert acceptance.roles.get(abstract_syntax) == granted
    assert [answer.result for answer in acceptance.contexts] == [result]
    accepted = accepted_contexts(asked, acceptance)
    if result == ContextResult.ACCEPTED:
        assert accepted[1].roles == (granted or SCU)
        assert (accepted[1].abstract_syntax, accepted[1].transfer_syntax) == (abstract_syntax, IMPLICIT)
    else:
        assert accepted == {}
