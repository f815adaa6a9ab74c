"""The other ends of the network: senders with images, and archives that take, refuse, or lose an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dicom_node.network.dimse import SUCCESS
from dicom_node.types import DeliveryOutcome
from tests.simulation.auditor import Violation
from tests.simulation.images import CONTEXT, Image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    from dicom_node.receive.scp import _Connection
    from dicom_node.types import ResultInstance
    from tests.simulation.auditor import Auditor
    from tests.simulation.world import Listening, Process, World

_AWAY = 0.15
_LEASE_S = 60.0


@dataclass
class Sender:
    """Sends images one after the other on associations; what got no answer or a failure is sent again later."""

    ae_title: str
    world: World
    auditor: Auditor
    waiting: list[list[Image]]
    """What is to be sent, one list for each association."""
    _connection: _Connection | None = None
    _of: Listening | None = None
    _images: list[Image] = field(default_factory=list)
    _again: list[Image] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return not (self.waiting or self._images or self._connection)

    @property
    def unsent(self) -> list[Image]:
        """What was not acknowledged yet."""
        return [*self._again, *self._images, *(image for images in self.waiting for image in images)]

    def step(self, listener: Listening) -> None:
        """Connect, send one image, or end the association."""
        if self._connection is not None and self._of is not listener:  # that one died
            self._connection, self._again = None, [*self._again, *self._images]
            self._images = []
            self._send_again()
        elif self._connection is None:
            self._images = self.waiting.pop(0)
            self._connection, self._of = listener.connect(self.ae_title), listener
        elif self._images:
            self._send(self._connection, self._images.pop(0))
        else:
            connection, self._connection = self._connection, None
            self._send_again()
            connection._end(released=self.world.is_calm or self.world.draw.random() < 0.85)

    def _send_again(self) -> None:
        if self._again:
            self.waiting.insert(0, self._again)
            self._again = []

    def _send(self, connection: _Connection, image: Image) -> None:
        draw, is_calm = self.world.draw, self.world.is_calm
        self.auditor.sends(image)
        self.world.note(f"{self.ae_title} sends {image}")
        self._again.append(image)
        connection.begin(image.command, CONTEXT)
        half = len(image.data_set) // 2
        connection.write(memoryview(image.data_set)[:half])
        if not is_calm and draw.random() < 0.03:  # the cable is pulled
            connection.discard()
            self._connection, self._again = None, [*self._again, *self._images]
            self._images = []
            self._send_again()
            connection._end(released=False)
            return
        connection.write(memoryview(image.data_set)[half:])
        status = connection.conclude().status
        self.world.note(f"{self.ae_title} is told {status:04X} of {image}")
        if not is_calm and draw.random() < 0.05:  # the answer is lost
            return
        self.auditor.answered(image, stored=status == SUCCESS)
        if status == SUCCESS:
            self._again.remove(image)


@dataclass
class Archive:
    """A destination; ``objects`` is what it has, by SOP Instance UID."""

    name: str
    world: World
    objects: dict[str, bytes] = field(default_factory=dict)
    _settled: set[str] = field(default_factory=set)
    """Of these the node knows that they arrived."""

    def take(
        self,
        results: Sequence[ResultInstance],
        on_outcome: Callable[[DeliveryOutcome], None],
        pause: Callable[[], None],
        sender: Process,
    ) -> None:
        """In place of :func:`dicom_node.deliver.scu.send`."""
        is_away = not self.world.is_calm and self.world.draw.random() < _AWAY
        for result in results:
            if is_away:
                on_outcome(DeliveryOutcome(result.sop_instance_uid, False, True, None, "away"))
            else:
                if result.sop_instance_uid in self._settled and self.world.uptime_s() - sender.began_s < _LEASE_S:
                    raise Violation(f"{self.name} gets {result.sop_instance_uid} again, though the node knows of it")
                self._take_one(result, on_outcome, pause)

    def _take_one(
        self, result: ResultInstance, on_outcome: Callable[[DeliveryOutcome], None], pause: Callable[[], None]
    ) -> None:
        uid = result.sop_instance_uid
        how = _how(self.world.draw, is_calm=self.world.is_calm)
        self.world.note(f"{self.name}: {how} {uid}")
        if how in ("refuse", "full"):
            status, retry = (0xA700, True) if how == "full" else (0xC000, False)
            on_outcome(DeliveryOutcome(uid, False, retry, status, how))
            return
        content = result.path.read_bytes()
        if self.objects.setdefault(uid, content) != content:
            raise Violation(f"{self.name} gets other bytes as {uid}")
        if how == "late":
            pause()
        if how == "lost":
            on_outcome(DeliveryOutcome(uid, False, True, None, "no answer"))
            return
        on_outcome(DeliveryOutcome(uid, True, False, SUCCESS, ""))
        if self.world.has_delivered(self.name, uid):
            self._settled.add(uid)


def _how(draw: Random, *, is_calm: bool) -> str:
    """What the archive does with one object."""
    return "take" if is_calm else draw.choices(("take", "refuse", "full", "lost", "late"), (70, 4, 6, 8, 12))[0]
