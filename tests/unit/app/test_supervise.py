"""When a process of the node that died is restarted: real processes, simulated time."""

import os
import signal
from contextlib import closing

import pytest
import structlog

from dicom_node.app.supervise import Child, _recorder
from dicom_node.store.clock import now_utc
from dicom_node.store.ledger import Ledger
from dicom_node.store.spool import Spool
from tests.support.waiting import wait_until

DIES = ["false"]
LIVES = ["sleep", "3600"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _log_of_this_test():
    structlog.reset_defaults()  # an earlier test may have set the log level to warnings only


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def child_of(clock):
    children = []

    def start(command):
        child = Child("listen", command, clock)
        children.append(child)
        child.start()
        return child

    yield start
    for child in children:
        if child.process is not None:
            child.process.kill()
            child.process.wait()


def pause_after_death(child, clock) -> float:
    """Let the running process end; return the seconds until the next one runs, in steps of a half."""
    died = child.process
    died.wait()
    child.watch()
    assert child.process is None
    noticed = clock.now
    while child.process is None:
        clock.now += 0.5
        child.watch()
        assert clock.now < noticed + 100, "it was never restarted"
    assert child.process.pid != died.pid
    return clock.now - noticed


def test_pause_doubles_up_to_half_a_minute(child_of, clock):
    child = child_of(DIES)
    assert [pause_after_death(child, clock) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_death_after_a_minute_counts_as_the_first_again(child_of, clock):
    child = child_of(DIES)
    for _ in range(4):
        pause_after_death(child, clock)
    clock.now += 60.5
    assert pause_after_death(child, clock) == 1
    clock.now += 59.5
    assert pause_after_death(child, clock) == 2


def test_process_that_cannot_be_started_again_is_tried_later(child_of, clock, tmp_path):
    """As on a machine that has no memory for another process: the other child goes on meanwhile."""
    program = tmp_path / "program"
    program.symlink_to("/bin/true")
    child = child_of([str(program)])
    program.unlink()
    child.process.wait()
    child.watch()
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            clock.now += 100
            child.watch()
    seen = [(each["event"], each["name"], each["error"], each["restart_in_s"]) for each in lines]
    assert seen == [("process.not_started", "listen", "ENOENT", pause) for pause in (2, 4, 8)]
    program.symlink_to("/bin/true")
    clock.now += 100
    child.watch()
    assert child.process.wait() == 0


def test_running_process_is_left_alone(child_of, clock):
    child = child_of(LIVES)
    process = child.process
    clock.now += 1e6
    child.watch()
    assert child.process is process
    assert process.poll() is None


def test_death_is_logged_with_exit_code_and_pause(child_of, clock):
    child = child_of(DIES)
    with structlog.testing.capture_logs() as lines:
        pause_after_death(child, clock)
    died, started = lines
    assert (died["event"], died["log_level"]) == ("process.died", "error")
    assert (died["name"], died["exit_code"], died["restart_in_s"]) == ("listen", 1, 1)
    assert started["event"] == "process.started"


def test_child_asked_to_stop_ends(child_of):
    child = child_of(LIVES)
    child.terminate()
    child.join(30)
    assert child.process.returncode == -signal.SIGTERM


def test_child_that_does_not_stop_is_killed_with_its_children(child_of, tmp_path):
    """Both processes hold the pipe's write end, so the reader sees its end when the last of them has ended."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    child = child_of(["sh", "-c", f"exec > {pipe}; trap '' TERM; sleep 3600 & echo ready; while :; do wait; done"])
    with pipe.open() as reading:
        assert reading.readline() == "ready\n"
        child.terminate()
        child.join(0)
        assert reading.read() == ""
    assert child.process.returncode == -signal.SIGKILL


def test_each_death_is_told(clock):
    died = []
    child = Child("work", DIES, clock, died=died.append)
    child.start()
    for number in range(1, 4):
        child.process.wait()
        child.watch()
        assert died == ["work"] * number
        clock.now += 100
        child.watch()
    child.process.wait()


def test_deaths_are_recorded_in_the_ledger(tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite3", Spool(tmp_path / "spool"))
    with closing(ledger):
        _recorder(ledger)("listen")
        (death,) = wait_until(lambda: ledger.alarms.facts(now_utc()).deaths)
    assert death.process == "listen"
