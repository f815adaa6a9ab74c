"""Sends results to a destination by C-STORE on one association, and interprets the answer for each instance."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import file_digest
from typing import TYPE_CHECKING

from pydicom.uid import ImplicitVRLittleEndian

from dicom_node.errors import (
    AssociationRejected,
    DeliveryDelayed,
    DeliveryError,
    DeliveryRefused,
    NetworkError,
    NotSendable,
)
from dicom_node.network.requestor import Association, OutgoingFile, Peer
from dicom_node.standard.uids import VERIFICATION
from dicom_node.types import DeliveryOutcome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dicom_node.settings import DestinationSettings
    from dicom_node.types import ResultInstance


@dataclass(frozen=True, slots=True)
class StatusMeaning:
    """What a C-STORE status means for a delivery: delivered, to be retried, or (neither) refused."""

    delivered: bool
    retry: bool
    text: str


NAMED_STATUSES: Mapping[int, StatusMeaning] = {
    0x0000: StatusMeaning(delivered=True, retry=False, text="stored"),
    0x0110: StatusMeaning(delivered=False, retry=True, text="processing failure"),
    0x0111: StatusMeaning(delivered=True, retry=False, text="already stored (duplicate SOP Instance)"),
    0x0117: StatusMeaning(delivered=False, retry=False, text="invalid SOP Instance"),
    0x0122: StatusMeaning(delivered=False, retry=False, text="SOP Class not supported"),
    0x0124: StatusMeaning(delivered=False, retry=False, text="not authorised"),
    0x0210: StatusMeaning(delivered=False, retry=True, text="duplicate invocation"),
    0x0213: StatusMeaning(delivered=False, retry=True, text="resource limitation"),
    0xB000: StatusMeaning(delivered=True, retry=False, text="stored with coercion of data elements"),
    0xB006: StatusMeaning(delivered=True, retry=False, text="stored, some elements discarded"),
    0xB007: StatusMeaning(delivered=True, retry=False, text="stored, data set does not match the SOP Class"),
}
STATUS_RANGES = (
    (0xA700, 0xA7FF, StatusMeaning(delivered=False, retry=True, text="out of resources")),
    (0xA900, 0xA9FF, StatusMeaning(delivered=False, retry=False, text="data set does not match the SOP Class")),
    (0xB000, 0xBFFF, StatusMeaning(delivered=True, retry=False, text="stored with a warning")),
    (0xC000, 0xCFFF, StatusMeaning(delivered=False, retry=False, text="cannot understand")),
)
"""First and last status of each range, for statuses without an entry of their own."""
UNKNOWN_STATUS = StatusMeaning(delivered=False, retry=False, text="unknown status")


def classify(status: int) -> StatusMeaning:
    """What a C-STORE response status means (PS3.4 B.2.3, PS3.7 Annex C).

    0x0111 counts as delivered: our SOP Instance UIDs are derived from the content, so the stored object is the same.
    0x0110 is the answer of archives to their own internal errors, so a retry may help. An unknown status counts as a
    refusal, which is retried a few times and then FAILED.
    """
    named = NAMED_STATUSES.get(status)
    if named is not None:
        return named
    return next((meaning for low, high, meaning in STATUS_RANGES if low <= status <= high), UNKNOWN_STATUS)


def send(
    destination: DestinationSettings,
    our_ae: str,
    results: Sequence[ResultInstance],
    on_outcome: Callable[[DeliveryOutcome], None],
) -> tuple[DeliveryOutcome, ...]:
    """C-STORE ``results`` to ``destination`` on one association, in order.

    ``on_outcome`` is called as soon as the outcome of an instance is known, so that an interrupted send resumes after
    the last answered instance. A refused instance does not stop the others, and one whose file changed is not sent.
    Whatever the peer does results in an outcome, never in an exception; only exceptions of ``on_outcome`` propagate
    (the association is then aborted).

    Returns:
        One outcome per result, in the order of ``results``.
    """
    outcomes: list[DeliveryOutcome] = []

    def settle(outcome: DeliveryOutcome) -> None:
        outcomes.append(outcome)
        on_outcome(outcome)

    files = [OutgoingFile(r.path, r.sop_class_uid, r.sop_instance_uid, r.transfer_syntax_uid) for r in results]
    if not files:
        return ()
    try:
        offers = [(file.sop_class_uid, file.transfer_syntax_uid) for file in files]
        with Association(peer_of(destination), our_ae, offers) as association:
            for result, file in zip(results, files, strict=True):
                settle(_fault_of(result) or _store(association, file))
    except NetworkError as error:
        for file in files[len(outcomes) :]:
            settle(_not_delivered(file, translated(error)))
    return tuple(outcomes)


def echo(destination: DestinationSettings, our_ae: str) -> tuple[bool, str]:
    """C-ECHO ``destination``: whether it answered with Success, and its answer as text."""
    try:
        with Association(peer_of(destination), our_ae, [(VERIFICATION, str(ImplicitVRLittleEndian))]) as association:
            status = association.echo()
    except NetworkError as error:
        return False, str(error)
    return status == 0, f"C-ECHO answered with 0x{status:04X}"


def peer_of(destination: DestinationSettings) -> Peer:
    """The Application Entity to call."""
    return Peer(
        ae_title=destination.ae_title,
        host=destination.host,
        port=destination.port,
        connect_timeout_s=destination.connect_timeout_s,
        response_timeout_s=destination.response_timeout_s,
        largest_pdu_bytes=destination.maximum_pdu_bytes,
    )


def translated(error: NetworkError) -> DeliveryError:
    """Translate an error of the association into one of the delivery."""
    is_final = isinstance(error, NotSendable) or (isinstance(error, AssociationRejected) and error.permanent)
    return DeliveryRefused(str(error)) if is_final else DeliveryDelayed(str(error))


def _fault_of(result: ResultInstance) -> DeliveryOutcome | None:
    """Why the file is not sent: it is away, or not what was written; None where it is sound."""
    try:
        with result.path.open("rb") as file:
            is_sound = file_digest(file, "sha256").hexdigest() == result.sha256
    except OSError as error:
        reason = f"the file of {result.sop_instance_uid} can't be read: {error.strerror}"
        return DeliveryOutcome(
            result.sop_instance_uid,
            delivered=False,
            retry=True,
            status=None,
            reason=reason,
            is_missing=isinstance(error, FileNotFoundError),
        )
    if is_sound:
        return None
    return DeliveryOutcome(
        result.sop_instance_uid,
        delivered=False,
        retry=False,
        status=None,
        reason="the stored result changed on the disk",
        is_damaged=True,
    )


def _store(association: Association, file: OutgoingFile) -> DeliveryOutcome:
    """The outcome for one instance; an error that affects the whole association is raised as a NetworkError."""
    try:
        status = association.store(file)
    except NotSendable as error:
        return _not_delivered(file, translated(error))
    meaning = classify(status)
    return DeliveryOutcome(
        sop_instance_uid=file.sop_instance_uid,
        delivered=meaning.delivered,
        retry=meaning.retry,
        status=status,
        reason=f"0x{status:04X} {meaning.text}",
    )


def _not_delivered(file: OutgoingFile, error: DeliveryError) -> DeliveryOutcome:
    return DeliveryOutcome(
        sop_instance_uid=file.sop_instance_uid,
        delivered=False,
        retry=isinstance(error, DeliveryDelayed),
        status=None,
        reason=str(error),
    )
