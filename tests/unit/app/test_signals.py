"""A process stops when it is asked to, whatever it is doing."""

from __future__ import annotations

import subprocess
import sys

import pytest

_IN_THE_MIDDLE_OF_WAITING = """
import os, signal, time
from dicom_node.app.signals import stop_on_signals
stop = stop_on_signals()
with stop._cond:
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.1)
assert stop.wait(30)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_in_the_middle_of_waiting_for_one_is_no_deadlock(name):
    program = _IN_THE_MIDDLE_OF_WAITING.format(name=name)
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0


def test_second_signal_changes_nothing():
    program = _IN_THE_MIDDLE_OF_WAITING.format(name="SIGTERM") + "\nos.kill(os.getpid(), signal.SIGTERM)\n"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
