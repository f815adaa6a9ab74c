"""Questions to peers: never waited for against the asker's will, limited in number and memory, silence remembered."""

from __future__ import annotations

import threading

import pytest

from dicom_node.errors import ConnectionLost
from dicom_node.network import questions
from dicom_node.network.questions import Heard, Questions
from tests.support.waiting import wait_until


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Peers:
    """What each question is answered with: a value, an exception, or an event that is waited for first."""

    def __init__(self):
        self.asked, self.failed = [], []
        self.under_way = self.most_under_way = 0
        self.answers, self.held = {}, {}
        self._lock = threading.Lock()

    def ask(self, peer, question):
        with self._lock:
            self.asked.append((peer, question))
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if peer in self.held:
                assert self.held[peer].wait(60)
            answer = self.answers.get(peer, question)
            if isinstance(answer, Exception):
                raise answer
            return answer
        finally:
            with self._lock:
                self.under_way -= 1

    def log(self, peer, error):
        self.failed.append((peer, type(error)))


@pytest.fixture
def peers():
    made = Peers()
    yield made
    for event in made.held.values():
        event.set()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def asked(peers, clock):
    return Questions(peers.ask, peers.log, clock)


def test_peer_that_is_silent_holds_up_nobody(asked, peers):
    peers.held["mute"] = threading.Event()
    assert asked.reply("mute", 1).heard is Heard.NOTHING_YET
    reply = asked.reply("other", 2, within_s=60)
    assert (reply.heard, reply.answer) == (Heard.ANSWER, 2)
    assert asked.reply("mute", 1).heard is Heard.NOTHING_YET
    peers.held["mute"].set()
    assert asked.reply("mute", 1, within_s=60).answer == 1


def test_no_more_than_four_questions_to_a_peer_are_under_way_and_the_others_follow(asked, peers):
    peers.held["slow"] = threading.Event()
    for number in range(20):
        asked.want("slow", number)
    wait_until(lambda: peers.under_way == questions.AT_ONCE)
    peers.held["slow"].set()
    assert [asked.reply("slow", number, within_s=60).answer for number in range(20)] == list(range(20))
    assert peers.most_under_way == questions.AT_ONCE
    assert len(peers.asked) == 20


def test_peer_without_an_answer_is_left_alone_for_a_while(asked, peers, clock):
    peers.answers["away"] = ConnectionLost("away")
    assert asked.reply("away", 1, within_s=60).heard is Heard.SILENCE
    assert [asked.reply("away", number).heard for number in range(5)] == [Heard.SILENCE] * 5
    assert peers.asked == [("away", 1)]
    assert peers.failed == [("away", ConnectionLost)]
    clock.now += questions.PAUSE_S
    del peers.answers["away"]
    assert asked.reply("away", 1, within_s=60).answer == 1


def test_answer_that_is_worth_nothing_is_an_answer(asked, peers):
    peers.answers["odd"] = ValueError("many")
    reply = asked.reply("odd", 1, within_s=60)
    assert (reply.heard, reply.answer) == (Heard.ANSWER, None)
    assert asked.reply("odd", 2, within_s=60).heard is Heard.ANSWER
    assert peers.failed == [("odd", ValueError)] * 2


def test_answer_is_given_once(asked, peers):
    for _ in range(2):
        assert asked.reply("a", 1, within_s=60).answer == 1
    assert len(peers.asked) == 2


def test_question_that_takes_too_long_counts_as_unanswered(asked, peers, clock):
    peers.held["slow"] = threading.Event()
    assert asked.reply("slow", 1).heard is Heard.NOTHING_YET
    clock.now += questions.LIMIT_S + 1
    assert asked.reply("slow", 1).heard is Heard.SILENCE


def test_answer_that_nobody_fetched_in_time_is_forgotten(asked, peers, clock):
    asked.want("a", 1)
    wait_until(lambda: len(peers.asked) == 1 and not peers.under_way)
    clock.now += questions.KEPT_S + 1
    assert asked.reply("a", 1, within_s=60).answer == 1
    assert len(peers.asked) == 2


def test_oldest_questions_are_forgotten_first(asked, peers, monkeypatch):
    monkeypatch.setattr(questions, "MOST_WANTED", 10)
    peers.held["slow"] = threading.Event()
    for number in range(1000):
        asked.want("slow", number)
    peers.held["slow"].set()
    assert [asked.reply("slow", number, within_s=60).answer for number in range(990, 1000)] == list(range(990, 1000))
    assert len(peers.asked) <= 10 + questions.AT_ONCE


def test_machine_without_threads_is_as_a_silent_peer(asked, monkeypatch, clock):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert asked.reply("a", 1).heard is Heard.NOTHING_YET
    clock.now += questions.LIMIT_S + 1
    assert asked.reply("a", 1).heard is Heard.SILENCE
    assert asked.reply("a", 1, within_s=60).answer == 1
