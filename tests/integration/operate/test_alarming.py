"""Alarms are logged once and told once, to real servers, whatever these do and however often the node restarts."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import structlog
import yaml

from dicom_node.app import supervise
from dicom_node.operate import alarming
from dicom_node.operate.alarming import Alarming, channels_of
from dicom_node.settings import AlarmSettings, load_settings
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool
from tests.support.alarm_receivers import mail_server, web_server
from tests.support.dicom_peers import raw_peer
from tests.support.ports import free_port
from tests.support.waiting import wait_until

SENDER, RECIPIENTS = "dicom-node@hospital.example", ("it@hospital.example", "physics@hospital.example")


@pytest.fixture(autouse=True)
def _every_line_is_logged():
    structlog.reset_defaults()


@pytest.fixture
def book(tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3", Spool(tmp_path / "spool"))
    yield ledger.alarms
    ledger.close()


class Watched:
    """A node whose disk is as full as ``percent`` says."""

    def __init__(self, book, **settings):
        self.percent = 50.0
        self.book = book
        limits = AlarmSettings(**settings)
        self.disk_percent = lambda: self.percent
        self._alarming = Alarming(book, self._fullness, limits, (), "CT-NODE", channels_of(limits))

    def _fullness(self):
        return self.disk_percent()

    def look(self, percent=None):
        self.percent = self.percent if percent is None else percent
        self._alarming.look()

    def look_until(self, condition):
        def looked():
            self.look()
            return condition()

        wait_until(looked)


def hook(server):
    return {"webhook_url": f"http://127.0.0.1:{server.server_address[1]}/alarms?token=t"}


def mail(server):
    return {
        "smtp_host": "127.0.0.1",
        "smtp_port": server.server_address[1],
        "mail_from": SENDER,
        "mail_to": RECIPIENTS,
    }


def told(book):
    return [(each.kind, each.cleared_at is None, each.told) for each in book.standing()]


def test_alarm_is_logged_when_it_is_raised_and_when_it_is_cleared(book):
    node = Watched(book)
    with structlog.testing.capture_logs() as log:
        for percent in (50, 90, 95, 91, 50, 50, 99):
            node.look(percent)
    assert [(line["event"], line["log_level"], line["kind"]) for line in log] == [
        ("alarm.raised", "error", "disk"),
        ("alarm.cleared", "info", "disk"),
        ("alarm.raised", "error", "disk"),
    ]
    assert log[0]["text"] == "90 % of the disk is in use; the limit is 80 %"


def test_webhook_gets_each_alarm_and_its_end_once(book):
    with web_server() as server:
        node = Watched(book, **hook(server))
        node.look(90)
        node.look_until(lambda: told(book) == [("disk", True, ("webhook",))])
        for _ in range(5):
            node.look(92)
        node.look_until(lambda: node.look(10) or told(book) == [])
    (path, kind, raised), (_, _, cleared) = server.received
    assert (path, kind, raised["node"]) == ("/alarms?token=t", "application/json", "CT-NODE")
    (alarm,) = raised["raised"]
    assert set(alarm) == {"kind", "subject", "text", "since", "cleared_at"}
    assert (alarm["kind"], alarm["cleared_at"], raised["cleared"]) == ("disk", None, [])
    assert (cleared["raised"], cleared["cleared"][0]["since"]) == ([], alarm["since"])
    assert cleared["cleared"][0]["cleared_at"] is not None


def test_mail_goes_to_every_recipient(book):
    with mail_server() as server:
        node = Watched(book, **mail(server))
        node.look(90)
        node.look_until(lambda: told(book) == [("disk", True, ("mail",))])
    (message,) = server.received
    assert (message["From"], message["To"]) == (SENDER, ", ".join(RECIPIENTS))
    assert message["Subject"] == "CT-NODE: alarms: 1 raised, 0 cleared"
    assert message["Message-ID"].endswith("@hospital.example>")
    assert "disk: 90 % of the disk is in use; the limit is 80 %" in message.get_content()


def test_receiver_that_never_answers_holds_up_neither_the_sweep_nor_the_other(book):
    called, go_on = threading.Event(), threading.Event()

    def say_nothing(_connection):
        called.set()
        go_on.wait(60)

    with raw_peer(say_nothing) as silent, mail_server() as server:
        node = Watched(book, webhook_url=f"http://127.0.0.1:{silent}/", **mail(server))
        node.look(90)
        assert called.wait(60)
        node.look_until(lambda: told(book) == [("disk", True, ("mail",))])
        assert not go_on.is_set()
        go_on.set()


@pytest.mark.parametrize(
    ("channel", "says"), [(hook, b"HTTP/1.1 100 Continue\r\n\r\n"), (mail, b"220-there is more\r\n")]
)
def test_receiver_that_never_comes_to_an_end_is_given_up(book, monkeypatch, channel, says):
    monkeypatch.setattr(alarming, "LIMIT_S", 0.3)

    def go_on(connection):
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(says)
                time.sleep(0.01)

    with raw_peer(go_on) as port, structlog.testing.capture_logs() as log:
        node = Watched(book, **channel(SimpleNamespace(server_address=("127.0.0.1", port))))
        node.look(90)
        wait_until(lambda: any(line["event"] == "alarm.not_sent" for line in log))
    assert told(book) == [("disk", True, ())]


def test_what_a_slow_channel_told_during_a_look_is_not_told_again(book):
    answer = threading.Event()
    with web_server(answers_after=answer) as server:
        node = Watched(book, **hook(server))
        node.look(90)

        def fullness():
            answer.set()
            wait_until(lambda: told(book) == [("disk", True, ("webhook",))])
            return 90

        node.disk_percent = fullness
        node.look()
        for _ in range(3):
            node.look()
        assert len(server.received) == 1


def test_message_that_could_not_be_sent_is_sent_later(book, monkeypatch):
    monkeypatch.setattr(alarming, "RETRY_S", 0.0)
    port = free_port()
    node = Watched(book, webhook_url=f"http://127.0.0.1:{port}")
    with structlog.testing.capture_logs() as log:
        node.look(90)
        node.look_until(lambda: any(line["event"] == "alarm.not_sent" for line in log))
    with web_server(port) as server:
        node.look_until(lambda: told(book) == [("disk", True, ("webhook",))])
    assert [path for path, _, _ in server.received] == ["/"]


def test_receiver_that_refuses_has_not_been_told_and_is_left_alone_for_a_while(book):
    with web_server(status=500) as server:
        node = Watched(book, **hook(server))
        with structlog.testing.capture_logs() as log:
            node.look(90)
            node.look_until(lambda: any(line["event"] == "alarm.not_sent" for line in log))
            for _ in range(10):
                node.look()
        assert len(server.received) == 1
    assert told(book) == [("disk", True, ())]


def test_restart_tells_what_was_not_told_and_nothing_twice(book):
    unable = Watched(book, webhook_url=f"http://127.0.0.1:{free_port()}")
    unable.look(90)
    with web_server() as server, structlog.testing.capture_logs() as log:
        for _ in range(3):
            restarted = Watched(book, **hook(server))
            restarted.percent = 90
            restarted.look_until(lambda: told(book) == [("disk", True, ("webhook",))])
            restarted.look()
        assert len(server.received) == 1
    assert [line for line in log if line["event"].startswith("alarm.raised")] == [], "it was raised before"


def test_alarm_that_nobody_was_told_of_is_forgotten_when_it_is_over(book):
    node = Watched(book)
    node.look(90)
    node.look(10)
    assert book.standing() == ()


def test_supervisor_tells_of_processes_that_die_again_and_again(tmp_path, monkeypatch):
    stop = threading.Event()
    monkeypatch.setattr(supervise, "ALARM_LOOK_S", 0.05)
    monkeypatch.setattr(supervise, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(supervise, "stop_on_signals", lambda: stop)
    monkeypatch.setattr(sys, "executable", "false")
    (tmp_path / "rules.yaml").write_text("rules: []")
    with web_server() as server:
        settings = {"node": {"data_folder": "data"}, "alarms": {**hook(server), "disk_percent": 100}}
        (tmp_path / "node.yaml").write_text(yaml.safe_dump(settings))
        serving = threading.Thread(
            target=supervise.serve, args=(load_settings(tmp_path / "node.yaml"), tmp_path / "node.yaml")
        )
        serving.start()
        try:
            wait_until(lambda: {each["subject"] for each in raised_at(server)} == {"listen", "work"})
        finally:
            stop.set()
            serving.join()
    assert {each["kind"] for each in raised_at(server)} == {"crash_loop"}


def raised_at(server):
    return [alarm for _, _, content in server.received for alarm in content["raised"]]
