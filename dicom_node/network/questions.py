"""Questions to peers, each asked in a thread of its own: a peer that is silent holds up nothing but its own questions.

A few questions to a peer are under way at once, the others wait for their turn. A peer that gives no answer is left
alone for a while, and every question to it counts as unanswered until then.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Generic, TypeVar

from dicom_node.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

AT_ONCE = 4
"""Questions to one peer at the same time, each on an association of its own."""
MOST_WANTED = 1000
"""Questions to one peer that are remembered; the oldest is forgotten first, and asked again if it is still wanted."""
LIMIT_S = 10.0
"""From the wish to the answer, the wait for a turn included; later the question counts as unanswered."""
PAUSE_S = 60.0
"""How long a peer that gave no answer is left alone."""
KEPT_S = 600.0
"""How long an answer waits for whoever wanted it."""

_Peer = TypeVar("_Peer", bound="Hashable")
_Question = TypeVar("_Question", bound="Hashable")
_Answer = TypeVar("_Answer")


class Heard(Enum):
    """What has been heard of a question."""

    NOTHING_YET = "nothing yet"
    SILENCE = "silence"
    ANSWER = "answer"


@dataclass(frozen=True, slots=True)
class Reply(Generic[_Answer]):
    """What has been heard; ``answer`` is None without one, or if the peer's answer was worth nothing.

    ``at``: when it was heard, by the clock of the questions.
    """

    heard: Heard
    answer: _Answer | None = None
    at: float = 0.0


@dataclass(slots=True)
class _Wanted(Generic[_Answer]):
    since: float
    is_taken: bool = False
    reply: Reply[_Answer] | None = None


@dataclass(slots=True)
class _Asked(Generic[_Question, _Answer]):
    """A peer: its questions in the order in which they were wanted, and the threads that ask them."""

    questions: dict[_Question, _Wanted[_Answer]] = field(default_factory=dict)
    threads: int = 0
    silent_until: float = float("-inf")

    def next(self) -> tuple[_Question, _Wanted[_Answer]] | None:
        return next((each for each in self.questions.items() if not each[1].is_taken), None)


class Questions(Generic[_Peer, _Question, _Answer]):
    """The questions of one kind; safe to use from several threads.

    Args:
        ask: asks a peer a question, in a thread of its own. A NetworkError is silence; any other exception means that
            the peer answered, but nothing of worth.
        log: told of each exception.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        ask: Callable[[_Peer, _Question], _Answer | None],
        log: Callable[[_Peer, Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._log = log
        self._clock = clock
        self._changed = threading.Condition()
        self._peers: dict[_Peer, _Asked[_Question, _Answer]] = {}

    def reply(self, peer: _Peer, question: _Question, within_s: float = 0.0) -> Reply[_Answer]:
        """What has been heard of ``question``, which is asked if it is new. Waits ``within_s`` seconds at most.

        An answer is given once; whoever wants the same question later has it asked again.
        """
        ends = time.monotonic() + within_s
        with self._changed:
            while (reply := self._look(peer, question)).heard is Heard.NOTHING_YET:
                left_s = ends - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    break
            return reply

    def want(self, peer: _Peer, question: _Question) -> None:
        """Ask ``question`` if it is new, without waiting; :meth:`reply` then says what has been heard."""
        with self._changed:
            self._wanted(peer, question)

    def _look(self, peer: _Peer, question: _Question) -> Reply[_Answer]:
        wanted = self._wanted(peer, question)
        if wanted is None:
            return Reply(Heard.SILENCE)
        if wanted.reply is None and self._clock() - wanted.since <= LIMIT_S:
            return Reply(Heard.NOTHING_YET)
        del self._peers[peer].questions[question]
        return wanted.reply or Reply(Heard.SILENCE)

    def _wanted(self, peer: _Peer, question: _Question) -> _Wanted[_Answer] | None:
        """The question, which is asked if it is new; None while the peer is left alone."""
        asked = self._peers.setdefault(peer, _Asked())
        now = self._clock()
        if now < asked.silent_until:
            return None
        wanted = asked.questions.get(question)
        if wanted is not None and (wanted.reply is None or now - wanted.reply.at < KEPT_S):
            return wanted
        asked.questions.pop(question, None)
        if len(asked.questions) >= MOST_WANTED:
            del asked.questions[next(iter(asked.questions))]
        wanted = asked.questions[question] = _Wanted(now)
        if asked.threads < AT_ONCE:
            with suppress(RuntimeError):  # no thread left on this machine: as if the peer had been silent
                threading.Thread(target=self._work, args=(peer, asked), name="question", daemon=True).start()
                asked.threads += 1
        return wanted

    def _work(self, peer: _Peer, asked: _Asked[_Question, _Answer]) -> None:
        """Ask one question after another until none is wanted."""
        while True:
            with self._changed:
                wish = asked.next()
                if wish is None:
                    asked.threads -= 1
                    return
                question, wanted = wish
                wanted.is_taken = True
            heard, answer = self._heard(peer, question)
            with self._changed:
                now = self._clock()
                if heard is Heard.SILENCE:
                    asked.silent_until = now + PAUSE_S
                    asked.questions.clear()
                wanted.reply = Reply(heard, answer, now)
                self._changed.notify_all()

    def _heard(self, peer: _Peer, question: _Question) -> tuple[Heard, _Answer | None]:
        try:
            return Heard.ANSWER, self._ask(peer, question)
        except NetworkError as error:
            self._log(peer, error)
            return Heard.SILENCE, None
        except Exception as error:  # noqa: BLE001 - nothing that a peer says may end the thread
            self._log(peer, error)
            return Heard.ANSWER, None
