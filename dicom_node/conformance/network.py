"""Section 4: the node's identity on the network, what it accepts and proposes, and how it handles each status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydicom.datadict import dictionary_description
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.conformance.created import sop_class_name
from dicom_node.conformance.markdown import table
from dicom_node.deliver.abilities import REMEMBERED_S
from dicom_node.deliver.retry import REFUSALS_SPREAD_OVER
from dicom_node.deliver.scu import NAMED_STATUSES, STATUS_RANGES, UNKNOWN_STATUS
from dicom_node.network.acceptor import ABORTS, REQUEST_DEADLINE_S, SLOWEST_BYTES_PER_S
from dicom_node.network.dimse import LARGEST_COMMAND_SET, PENDING
from dicom_node.network.pdu import LARGEST_ASSOCIATE, MOST_CONTEXTS, MOST_TRANSFER_SYNTAXES, MOST_USER_ITEMS
from dicom_node.network.requestor import LARGEST_ANSWER_BYTES, RELEASE_WAIT_S, with_fallback
from dicom_node.network.transport import KEEPALIVE_IDLE_S
from dicom_node.pipeline.delivering import DELIVERIES_PER_ASSOCIATION
from dicom_node.receive.count import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, LARGEST_PDU_BYTES, query_identifier
from dicom_node.receive.policy import REJECTIONS, STATUSES
from dicom_node.receive.scp import MOST_WAITING, MOST_WAITING_PER_ADDRESS, STOP_DEADLINE_S
from dicom_node.settings import (
    CompletionSettings,
    DeliverySettings,
    DestinationSettings,
    NodeSettings,
    OperateSettings,
    ReceiveSettings,
    Settings,
    SourceSettings,
)
from dicom_node.standard.implementation import IMPLEMENTATION_CLASS_UID, VERSION_NAME
from dicom_node.standard.transfer_syntaxes import UNCOMPRESSED, decodable
from dicom_node.standard.uids import APPLICATION_CONTEXT, CT_SOP_CLASSES, STUDY_ROOT_FIND, VERIFICATION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic import BaseModel

    from dicom_node.conformance.created import CreatedObject
    from dicom_node.deliver.scu import StatusMeaning

_DATA_FLOW = """
```
                    C-STORE, C-ECHO                                          C-STORE, C-ECHO
 source (archive, ──────────────────▶ RECEIVE ─▶ spool, ─▶ work ─▶ DELIVER ──────────────────▶ destination
 scanner)                                        ledger     │                                  (archive, viewer)
    ▲                                                       │
    └───────────────────────────── COUNT ◀──────────────────┘
                    C-FIND
```

The product has three Application Entities in the sense of PS3.2, which share one AE title.
"""
_FUNCTIONS = """
- **RECEIVE** waits for associations, answers C-ECHO, and stores the instances of C-STORE durably on disk and in the
  ledger before it sends the status. When a series is complete, by evidence or by timeout, the rules decide what runs on
  it.
- **COUNT** asks the sender of a series, if configured, how many instances the series has.
- **DELIVER** sends the results to the destinations that the rules name, until each destination has answered for each
  instance; it accepts no requests. `dicom-node check` sends C-ECHO to every destination and count address,
  and may propose contexts for SEG and label map as for `auto`.
"""
_SEQUENCING = """
A series is received over one or more associations; COUNT may query the sender at the end; reconstruction, segmentation
and encoding follow; DELIVER sends each result. Instances that arrive late open a new revision of the series, whose
results state that they supersede the earlier ones. An instance that is sent again with the same bytes adds nothing;
with different bytes it replaces the earlier one in a new revision, which creates objects only if the content changed
(section 9.1.1). Another image with the SOP Instance UID of one that was received is refused with status 0111 (table
4-2). RECEIVE does not decode pixels: if an association sends a SOP Instance UID again in another transfer syntax, the
instance is accepted, the decoded pixels are compared before the series is processed, and a series with two images under
one UID is rejected as a whole. A later association may correct it.
"""
_RECEIVE_GENERAL = """
RECEIVE makes no proposals. SCP/SCU role selection is answered: a peer that proposes the SCU role is granted it; a
presentation context for which the peer proposes only the SCP role is answered user-rejection (1). Extended negotiation,
asynchronous operations and user identity items are ignored: the defaults of the standard apply.
"""
_RECEIVE_INITIATION = "RECEIVE initiates no association."
_RECEIVE_ACCEPTANCE = """
AE titles are compared without the spaces around them and otherwise byte for byte, before the rest of the request is
read.

In each presentation context, the first proposed transfer syntax that is in the table is accepted. Compressed transfer
syntaxes are accepted only if they are always lossless and their decoder is installed; Deflated Explicit VR and Explicit
VR Big Endian are never accepted. A context for any other abstract syntax is answered abstract-syntax-not-supported (3),
one without a supported transfer syntax transfer-syntaxes-not-supported (4).

Storage is level 2 (full): the data set is kept byte for byte as received, including private attributes, until results
are delivered and the retention time has passed. It can't be queried or retrieved. No attribute is coerced. Only
well-formedness and UIDs are checked on reception; all other content is checked when the series is complete, and an
unsuitable series is then rejected within the node, with the reason, and not on the association.
"""
_COUNT_SCP = "COUNT is not an SCP and accepts no associations."
_COUNT_BEHAVIOUR = """
Each query uses its own association, which is opened when a series may be complete and its sender has a count address,
and released after the answer. The count is used if exactly one response with status pending has the requested Series
Instance UID and a Number of Series Related Instances (0020,1209) above 0. Anything else (no association, a failure, no
answer, 0) counts as no answer: completeness is then decided by the other evidence.
"""
_DELIVER_BEHAVIOUR = """
At most {number} instances are sent to a destination on one association, one after another. There is one association per
destination at a time, and destinations do not wait for each other. Each required pair of SOP Class and transfer syntax
is proposed as one presentation context. Implicit VR Little Endian is proposed in addition to Explicit VR Little Endian,
for peers that accept nothing else. Label maps are RLE compressed and sent in no other form.

If the segmentation of a destination is `auto`, DELIVER first finds out whether the destination accepts label maps, on
an association that proposes contexts for SEG and label map and sends no C-STORE. The answer is valid for {minutes:g}
minutes, or until the destination refuses a label map.
"""
_DELIVER_FAILURES = (
    ("no connection, connection lost, silence, malformed answer, A-ABORT", "tried again"),
    ("association rejected, transient (2)", "tried again"),
    ("association rejected, permanent (1)", "refused"),
    ("presentation context not accepted", "refused"),
)
_INTERFACES = "TCP/IP over any interface that the operating system supports."
_PROTOCOLS = "None: no DNS service discovery, no LDAP configuration, no DICOM web services."
_IP_VERSIONS = """
RECEIVE listens on one IPv4 or IPv6 address, `node.bind_address`. DELIVER and COUNT connect to the IPv4 or IPv6 address
that the host name of a peer resolves to.
"""


def sections(created: Sequence[CreatedObject], settings: Settings, *, is_configured: bool) -> list[tuple[str, str]]:
    """Numbered headings and their text."""
    return [
        ("4 Networking", ""),
        ("4.1 Implementation model", ""),
        ("4.1.1 Application data flow", _DATA_FLOW),
        ("4.1.2 Functional definition of AEs", _FUNCTIONS),
        ("4.1.3 Sequencing of real-world activities", _SEQUENCING),
        ("4.2 AE specifications", ""),
        ("4.2.1 RECEIVE", ""),
        ("4.2.1.1 SOP Classes", _sop_classes((VERIFICATION, *sorted(CT_SOP_CLASSES)), scp=True)),
        ("4.2.1.2 Association policies", _receive_policies(settings)),
        ("4.2.1.3 Association initiation policy", _RECEIVE_INITIATION),
        ("4.2.1.4 Association acceptance policy", _acceptance()),
        ("4.2.2 COUNT", ""),
        ("4.2.2.1 SOP Classes", _sop_classes((STUDY_ROOT_FIND,), scp=False)),
        ("4.2.2.2 Association policies", _count_policies()),
        ("4.2.2.3 Association initiation policy", _count_initiation()),
        ("4.2.2.4 Association acceptance policy", _COUNT_SCP),
        ("4.2.3 DELIVER", ""),
        ("4.2.3.1 SOP Classes", _sop_classes((VERIFICATION, *_sent(created)), scp=False)),
        ("4.2.3.2 Association policies", _deliver_policies()),
        ("4.2.3.3 Association initiation policy", _deliver_initiation(created, settings)),
        ("4.2.3.4 Association acceptance policy", "DELIVER is not an SCP and accepts no associations."),
        ("4.3 Network interfaces", ""),
        ("4.3.1 Physical network interface", _INTERFACES),
        ("4.3.2 Additional protocols", _PROTOCOLS),
        ("4.3.3 IPv4 and IPv6 support", _IP_VERSIONS),
        ("4.4 Configuration", ""),
        ("4.4.1 AE title and presentation address mapping", _addresses(settings)),
        ("4.4.2 Parameters", _parameters(settings, is_configured=is_configured)),
    ]


def facts(created: Sequence[CreatedObject], settings: Settings) -> dict[str, Any]:
    """The tables as JSON values."""
    return {
        "implementation_class_uid": IMPLEMENTATION_CLASS_UID,
        "implementation_version_name": VERSION_NAME,
        "ae_title": settings.node.ae_title,
        "port": settings.node.port,
        "accepted": [{"sop_class": uid, "transfer_syntaxes": list(syntaxes)} for uid, syntaxes in accepted().items()],
        "statuses_answered": {f"{status:04X}": meaning for status, (meaning, _) in STATUSES.items()},
        "proposed": [{"sop_class": uid, "transfer_syntax": syntax} for uid, syntax in proposed(created)],
        "statuses_understood": {
            f"{status:04X}": {"delivered": meaning.delivered, "retry": meaning.retry}
            for status, meaning in NAMED_STATUSES.items()
        },
    }


def accepted() -> dict[str, tuple[str, ...]]:
    """Transfer syntaxes by abstract syntax that RECEIVE accepts from a source that may use both services."""
    stored = tuple(sorted(decodable(), key=lambda uid: [int(part) for part in uid.split(".")]))
    return {VERIFICATION: tuple(sorted(UNCOMPRESSED))} | dict.fromkeys(sorted(CT_SOP_CLASSES), stored)


def proposed(created: Sequence[CreatedObject]) -> list[tuple[str, str]]:
    """Abstract and transfer syntax of every presentation context that DELIVER may propose for C-STORE."""
    return with_fallback([(each.sop_class_uid, each.transfer_syntax_uid) for each in created])


def _sent(created: Iterable[CreatedObject]) -> Iterator[str]:
    return iter(dict.fromkeys(each.sop_class_uid for each in created))


def _sop_classes(uids: Iterable[str], *, scp: bool) -> str:
    rows = [(sop_class_name(uid), uid, "no" if scp else "yes", "yes" if scp else "no") for uid in uids]
    return table(("SOP Class", "UID", "SCU", "SCP"), rows)


def _identification() -> list[tuple[str, object]]:
    return [
        ("application context name", APPLICATION_CONTEXT),
        ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
        ("Implementation Version Name", VERSION_NAME),
        ("outstanding asynchronous operations", "1 (not negotiated)"),
    ]


# ---- RECEIVE


def _receive_policies(settings: Settings) -> str:
    limits = settings.receive
    rows = [
        *_identification(),
        ("simultaneous associations as acceptor", limits.maximum_associations),
        ("simultaneous associations as acceptor, of one calling AE title", limits.maximum_associations_per_ae),
        ("simultaneous associations as acceptor, from one address", limits.maximum_associations_per_address),
        ("associations as requestor", 0),
        ("maximum PDU length received, in bytes", limits.maximum_pdu_bytes),
        ("maximum A-ASSOCIATE-RQ length, in bytes", LARGEST_ASSOCIATE),
        ("maximum number of presentation contexts", MOST_CONTEXTS),
        ("maximum number of transfer syntaxes in a presentation context", MOST_TRANSFER_SYNTAXES),
        ("maximum number of user information sub-items", MOST_USER_ITEMS),
        ("maximum command set length, in bytes", LARGEST_COMMAND_SET),
        ("maximum data set length, in bytes", limits.maximum_instance_bytes),
        ("simultaneous connections without an association, in total", MOST_WAITING),
        ("simultaneous connections without an association, per address", MOST_WAITING_PER_ADDRESS),
        ("timeout for the A-ASSOCIATE-RQ (ARTIM)", f"{REQUEST_DEADLINE_S:g} s"),
        ("timeout between messages, then A-ABORT", f"{limits.network_timeout_s:g} s"),
        ("timeout within a message, then A-ABORT", f"{limits.dimse_timeout_s:g} s"),
        ("minimum rate of a message, after that time", f"{SLOWEST_BYTES_PER_S} bytes/s"),
        ("TCP keep-alive after", f"{KEEPALIVE_IDLE_S} s"),
        ("time to finish the current message when the node stops", f"{STOP_DEADLINE_S:g} s"),
    ]
    return f"{_RECEIVE_GENERAL}\n{table(('parameter', 'value'), rows)}"


def _acceptance() -> str:
    contexts = [
        (sop_class_name(uid), uid, UID(syntax).name, syntax, "SCP", "none")
        for uid, syntaxes in accepted().items()
        for syntax in syntaxes
    ]
    contexts_table = table(("abstract syntax", "UID", "transfer syntax", "UID", "role", "negotiation"), contexts)
    statuses = [(f"{status:04X}", meaning, when) for status, (meaning, when) in STATUSES.items()]
    rejections = [(each.result, each.source, each.diagnostic, each.term, when) for each, when in REJECTIONS.items()]
    aborts = [(int(reason), reason.term, when) for reason, when in ABORTS.items()]
    return f"""
Table 4-1: presentation contexts accepted

{contexts_table}

{_RECEIVE_ACCEPTANCE.strip()}

Table 4-2: statuses returned (PS3.7 annex C, PS3.4 B.2.3); Error Comment (0000,0902) gives the reason

{table(("status", "meaning", "when"), statuses)}

Table 4-3: associations rejected (PS3.8 9.3.4)

{table(("result", "source", "reason", "meaning", "when"), rejections)}

Table 4-4: associations aborted by RECEIVE (A-ABORT, source 2, PS3.8 9.3.8)

{table(("reason", "meaning", "when"), aborts)}
"""


# ---- COUNT


def _count_policies() -> str:
    rows = [
        *_identification(),
        ("simultaneous associations as requestor", 1),
        ("associations as acceptor", 0),
        ("largest PDU received, in bytes", LARGEST_PDU_BYTES),
        ("timeout for a connection", f"{CONNECT_TIMEOUT_S:g} s"),
        ("timeout for an answer", f"{ANSWER_TIMEOUT_S:g} s"),
    ]
    return table(("parameter", "value"), rows)


def _count_initiation() -> str:
    identifier = query_identifier("1.2", "1.2")
    keys = [
        (
            dictionary_description(element.tag),
            f"({element.tag.group:04X},{element.tag.element:04X})",
            "return key" if element.is_empty else "matching key" if element.VR == "UI" else element.value,
        )
        for element in identifier
    ]
    contexts = [
        (sop_class_name(STUDY_ROOT_FIND), STUDY_ROOT_FIND, UID(syntax).name, syntax, "SCU")
        for _, syntax in with_fallback([(STUDY_ROOT_FIND, str(ExplicitVRLittleEndian))])
    ]
    pending = ", ".join(f"{status:04X}" for status in PENDING)
    return f"""
{_COUNT_BEHAVIOUR.strip()} Pending: {pending}.

Table 4-5: presentation contexts proposed by COUNT

{table(("abstract syntax", "UID", "transfer syntax", "UID", "role"), contexts)}

Table 4-6: query keys

{table(("attribute", "tag", "value"), keys)}
"""


# ---- DELIVER


def _deliver_policies() -> str:
    defaults = DestinationSettings(host="any", port=104, ae_title="ANY")
    rows = [
        *_identification(),
        ("simultaneous associations as requestor", "1 per destination"),
        ("associations as acceptor", 0),
        ("maximum PDU length received, in bytes", f"{defaults.maximum_pdu_bytes}, per destination"),
        ("maximum PDU length sent, in bytes", "that of the peer, at most the maximum received"),
        ("maximum length of an answer, in bytes", LARGEST_ANSWER_BYTES),
        ("timeout for a connection", f"{defaults.connect_timeout_s:g} s, per destination"),
        ("timeout for an answer, then A-ABORT", f"{defaults.response_timeout_s:g} s, per destination"),
        ("timeout for the A-RELEASE-RP", f"{RELEASE_WAIT_S:g} s"),
    ]
    return table(("parameter", "value"), rows)


def _deliver_initiation(created: Sequence[CreatedObject], settings: Settings) -> str:
    contexts = [
        (sop_class_name(uid), uid, UID(syntax).name, syntax, "SCU", "none")
        for uid, syntax in [(VERIFICATION, str(ImplicitVRLittleEndian)), *proposed(created)]
    ]
    statuses = [
        *((f"{status:04X}", meaning.text, _behaviour(meaning)) for status, meaning in NAMED_STATUSES.items()),
        *(
            (f"other {low:04X} to {high:04X}", meaning.text, _behaviour(meaning))
            for low, high, meaning in STATUS_RANGES
        ),
        ("any other", UNKNOWN_STATUS.text, _behaviour(UNKNOWN_STATUS)),
    ]
    delivery, give_up = settings.delivery, DestinationSettings.model_fields["give_up_after_s"].default
    behaviour = _DELIVER_BEHAVIOUR.format(number=DELIVERIES_PER_ASSOCIATION, minutes=REMEMBERED_S / 60)
    contexts_table = table(("abstract syntax", "UID", "transfer syntax", "UID", "role", "negotiation"), contexts)
    return f"""
{behaviour.strip()}

Table 4-7: presentation contexts proposed by DELIVER

{contexts_table}

Table 4-8: handling of C-STORE statuses

{table(("status", "meaning", "behaviour"), statuses)}

Table 4-9: handling of communication failures

{table(("failure", "behaviour"), _DELIVER_FAILURES)}

- *Delivered*: not sent again.
- *Tried again*: after {delivery.first_retry_s:g} s, then at intervals that double up to {delivery.longest_retry_s:g} s,
  for {give_up / 86400:g} days unless configured otherwise for the destination.
- *Refused*: offered {delivery.refused_attempts} times within {REFUSALS_SPREAD_OVER.total_seconds() / 3600:g} h.

A delivery that was given up is listed for the operator, who can have it tried again (`dicom-node retry`). Storage
Commitment is not requested.
"""


def _behaviour(meaning: StatusMeaning) -> str:
    if meaning.delivered:
        return "delivered"
    return "tried again" if meaning.retry else "refused"


# ---- configuration


def _addresses(settings: Settings) -> str:
    node = settings.node
    local = table(
        ("AE", "AE title", "address", "port"),
        [("RECEIVE, COUNT, DELIVER", node.ae_title, node.bind_address, node.port)],
    )
    remote = [
        *(
            (f"source, {' and '.join(source.services)}", source.ae_title, ", ".join(source.addresses) or "any", "")
            for source in settings.sources
        ),
        *(
            ("count", source.count_ae_title or source.ae_title, source.count_host, source.count_port)
            for source in settings.sources
            if source.count_host is not None
        ),
        *((f"destination {name}", peer.ae_title, peer.host, peer.port) for name, peer in settings.destinations.items()),
    ]
    known = table(("peer", "AE title", "address", "port"), remote) if remote else "None are configured."
    return f"Local:\n\n{local}\n\nRemote:\n\n{known}\n"


def _parameters(settings: Settings, *, is_configured: bool) -> str:
    headings = ["parameter", "default", "permitted", *(["configured"] if is_configured else [])]
    rows = [row[: len(headings)] for row in _rows(settings)]
    return f"""
These keys of the configuration file concern the network. Rules decide which model runs on which series and what each
destination gets; `config/rules.yaml` explains every option.

{table(headings, rows)}
"""


_CONCERNED: tuple[tuple[str, type[BaseModel]], ...] = (
    ("node", NodeSettings),
    ("receive", ReceiveSettings),
    ("completion", CompletionSettings),
    ("delivery", DeliverySettings),
    ("operate", OperateSettings),
)
_LISTS: tuple[tuple[str, type[BaseModel]], ...] = (("sources", SourceSettings), ("destinations", DestinationSettings))


def _rows(settings: Settings) -> Iterator[tuple[str, str, str, str]]:
    for key, model in _CONCERNED:
        yield from _keys(f"{key}.", model, getattr(settings, key))
    for key, model in _LISTS:
        yield from _keys(f"{key}: each ", model, None)


def _keys(prefix: str, model: type[BaseModel], configured: BaseModel | None) -> Iterator[tuple[str, str, str, str]]:
    for name, schema in model.model_json_schema()["properties"].items():
        field = model.model_fields[name]
        default = "required" if field.is_required() else _shown(field.default)
        value = _shown(getattr(configured, name)) if configured is not None else "section 4.4.1"
        yield f"`{prefix}{name}`", default, _permitted(schema), value


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(str(each) for each in value) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value)


def _permitted(schema: dict[str, Any]) -> str:
    """The limits in a JSON schema."""
    choices = schema.get("items", schema).get("enum")
    if choices:
        return ", ".join(str(choice) for choice in choices)
    kind: dict[str, Any] = next(
        (each for each in (schema, *schema.get("anyOf", ())) if each.get("type") not in (None, "null")), {}
    )
    limits = [
        f"{words} {_shown(kind[key])}{unit}"
        for key, words, unit in (
            ("minimum", "at least", ""),
            ("exclusiveMinimum", "above", ""),
            ("maximum", "at most", ""),
            ("minLength", "at least", " characters"),
            ("maxLength", "at most", " characters"),
        )
        if key in kind
    ]
    return ", ".join(limits)
