"""Raises and clears alarms: logged once, kept in the ledger, and told to people by webhook and e-mail.

Whether a channel knows of an alarm is kept in the ledger too, so that nothing is told twice after a restart, and what
could not be told is told later. Each channel has a thread of its own: one that is slow or away holds up nothing.
"""

from __future__ import annotations

import json
import queue
import smtplib
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import structlog

from dicom_node.errors import StoreUnavailable
from dicom_node.network.transport import cut
from dicom_node.operate.alarms import alarms_of
from dicom_node.store.alarms import Standing
from dicom_node.store.clock import now_utc
from dicom_node.store.views import json_form

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from datetime import datetime

    from dicom_node.operate.alarms import Alarm
    from dicom_node.settings import AlarmSettings
    from dicom_node.store.alarms import Alarms

TIMEOUT_S = 10.0
"""To connect, and for each read and write."""
LIMIT_S = 60.0
"""For a whole message."""
RETRY_S = 300.0
"""After a message could not be sent."""
_HTTP_OK = range(200, 300)
_CUT_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Message:
    """What a channel is told: alarms that were raised, and alarms that are over. ``node``: its station name."""

    node: str
    raised: tuple[Standing, ...]
    cleared: tuple[Standing, ...]

    def as_json(self) -> str:
        """For programs."""
        return json.dumps(
            {
                "node": self.node,
                "raised": [_plain(each) for each in self.raised],
                "cleared": [_plain(each) for each in self.cleared],
            }
        )

    def as_text(self) -> str:
        """For people: one line for each alarm."""
        raised = [f"RAISED  {each.since:%Y-%m-%d %H:%M} UTC  {each.kind}: {each.text}" for each in self.raised]
        cleared = [f"CLEARED {each.cleared_at:%Y-%m-%d %H:%M} UTC  {each.kind}: {each.text}" for each in self.cleared]
        return "\n".join((*raised, *cleared, ""))


def _plain(alarm: Standing) -> dict[str, Any]:
    return {name: value for name, value in json_form(alarm).items() if name != "told"}


class Channel(Protocol):
    """A way to tell people."""

    name: str

    def send(self, message: Message) -> None:
        """Send it.

        Raises:
            OSError: it could not be sent.
            HTTPException: the same.
        """


class Webhook:
    """Posts messages as JSON to a URL; redirects are not followed."""

    name = "webhook"

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)

    def send(self, message: Message) -> None:
        """See Channel."""
        kind = HTTPSConnection if self._url.scheme == "https" else HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=TIMEOUT_S)
        target = f"{self._url.path or '/'}{'?' if self._url.query else ''}{self._url.query}"
        try:
            with _limited(connection):
                connection.request("POST", target, message.as_json(), {"Content-Type": "application/json"})
                status = connection.getresponse().status
        finally:
            connection.close()
        if status not in _HTTP_OK:
            raise HTTPException(f"status {status}")


class Mail:
    """Sends messages by SMTP, in clear text and without a login: to a relay in the same network."""

    name = "mail"

    def __init__(self, host: str, port: int, sender: str, recipients: Sequence[str]) -> None:
        self._host, self._port = host, port
        self._sender, self._recipients = sender, tuple(recipients)

    def send(self, message: Message) -> None:
        """See Channel."""
        mail = EmailMessage()
        mail["From"], mail["To"] = self._sender, ", ".join(self._recipients)
        mail["Subject"] = f"{message.node}: alarms: {len(message.raised)} raised, {len(message.cleared)} cleared"
        mail["Date"], mail["Message-ID"] = formatdate(), make_msgid(domain=self._sender.rpartition("@")[2])
        mail.set_content(message.as_text())
        server = smtplib.SMTP(timeout=TIMEOUT_S)
        with _limited(server), server:
            server.connect(self._host, self._port)
            server.send_message(mail)


@contextmanager
def _limited(connection: HTTPConnection | smtplib.SMTP) -> Iterator[None]:
    """Cut ``connection`` if the block takes too long: a receiver that says a little now and then meets no timeout."""
    ended = threading.Event()

    def cut_late() -> None:
        pause_s = LIMIT_S
        while not ended.wait(pause_s):
            if connection.sock is not None:
                cut(connection.sock)
            pause_s = _CUT_AGAIN_S

    threading.Thread(target=cut_late, name="limit of a message", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def channels_of(settings: AlarmSettings) -> tuple[Channel, ...]:
    """The configured ways to tell people."""
    found: list[Channel] = []
    if settings.webhook_url is not None:
        found.append(Webhook(settings.webhook_url))
    if settings.smtp_host is not None and settings.mail_from is not None:
        found.append(Mail(settings.smtp_host, settings.smtp_port, settings.mail_from, settings.mail_to))
    return tuple(found)


class Messenger:
    """Sends the messages for one channel in a thread of its own, which it has for the life of the process.

    ``sent`` is told, in that thread, the name of the channel and each message that went out.
    """

    def __init__(self, channel: Channel, sent: Callable[[str, Message], None]) -> None:
        self.name = channel.name
        self._channel = channel
        self._sent = sent
        self._messages: queue.Queue[Message] = queue.Queue(1)
        self._not_before = 0.0
        self._is_busy = threading.Event()
        threading.Thread(target=self._run, name=f"alarms by {self.name}", daemon=True).start()

    @property
    def is_free(self) -> bool:
        """Whether the channel is neither busy nor has just failed."""
        return time.monotonic() >= self._not_before and not self._is_busy.is_set()

    def send(self, message: Message) -> None:
        """Send ``message`` by the channel, which is free; never waits."""
        self._is_busy.set()
        self._messages.put_nowait(message)

    def _run(self) -> None:
        log = structlog.get_logger()
        while True:
            message = self._messages.get()
            try:
                self._channel.send(message)
                self._sent(self.name, message)
            except (OSError, HTTPException, StoreUnavailable) as error:
                self._not_before = time.monotonic() + RETRY_S
                log.warning("alarm.not_sent", channel=self.name, error=type(error).__name__, again_in_s=RETRY_S)
            except Exception:
                self._not_before = time.monotonic() + RETRY_S
                log.exception("alarm.crashed", channel=self.name)
            finally:
                self._is_busy.clear()


class Alarming:
    """Looks at the facts, and raises and clears alarms.

    Args:
        book: facts and standing alarms.
        disk_percent: used space of the spool's disk, None if it can't be read.
        limits: when an alarm is raised.
        destinations: the configured ones.
        node: its station name, for messages.
        channels: how people are told.
    """

    def __init__(
        self,
        book: Alarms,
        disk_percent: Callable[[], float | None],
        limits: AlarmSettings,
        destinations: Collection[str],
        node: str,
        channels: Sequence[Channel],
    ) -> None:
        self._book = book
        self._disk_percent = disk_percent
        self._limits = limits
        self._destinations = destinations
        self._node = node
        self._messengers = [Messenger(channel, self._told) for channel in channels]
        self._log = structlog.get_logger()

    def look(self) -> None:
        """Raise what is new, clear what is over, and tell those who do not know yet. Sends nothing itself."""
        now = now_utc()
        # before the book is read: what a busy channel has told meanwhile would be told again
        free = [messenger for messenger in self._messengers if messenger.is_free]
        before = self._book.standing()
        standing = {each.key for each in before if each.cleared_at is None}
        facts, disk = self._book.facts(now), self._disk_percent()
        found = {alarm.key: alarm for alarm in alarms_of(facts, disk, self._limits, self._destinations, now, standing)}
        if found.keys() != standing:
            before = self._book.change(lambda book: _changed(book, found.values(), now))
            self._log_changes(found, standing)
        for messenger in free:
            raised = tuple(a for a in before if a.cleared_at is None and messenger.name not in a.told)
            cleared = tuple(a for a in before if a.cleared_at is not None and messenger.name in a.told)
            if raised or cleared:
                messenger.send(Message(self._node, raised, cleared))

    def _told(self, channel: str, message: Message) -> None:
        self._book.told(channel, message.raised, message.cleared, now_utc())

    def _log_changes(self, found: dict[tuple[str, str], Alarm], standing: Collection[tuple[str, str]]) -> None:
        for key, alarm in found.items():
            if key not in standing:
                self._log.error("alarm.raised", kind=alarm.kind, subject=alarm.subject, text=alarm.text)
        for kind, subject in sorted(set(standing) - found.keys()):
            self._log.info("alarm.cleared", kind=kind, subject=subject)


def _changed(book: Sequence[Standing], found: Collection[Alarm], now: datetime) -> tuple[Standing, ...]:
    """The standing alarms once ``found`` are those that hold: new ones raised, and others cleared.

    Of an alarm that is over, and of which no channel was told, nobody needs to hear. One that is raised again before
    all channels heard of its end goes on.
    """
    keys = {alarm.key for alarm in found}
    kept = {each.key: each for each in book}
    for key, each in kept.items():
        if key not in keys and each.cleared_at is None:
            kept[key] = replace(each, cleared_at=now)
    for alarm in found:
        old = kept.get(alarm.key)
        if old is None or old.cleared_at is not None:
            told = () if old is None else old.told
            kept[alarm.key] = Standing(alarm.kind, alarm.subject, alarm.text, now, told=told)
    return tuple(each for each in kept.values() if each.cleared_at is None or each.told)
