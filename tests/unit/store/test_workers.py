"""A worker's name identifies one process for ever, and only evidence valid on this machine counts as its end."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.errors import ConfigurationError
from dicom_node.store import workers
from dicom_node.store.workers import WorkerName
from tests.support.other_process import other_process

NUMBERS = st.integers(0, 2**32)
NAMES = st.builds(
    WorkerName, st.text(st.characters(codec="ascii"), max_size=64), st.uuids().map(str), NUMBERS, NUMBERS, NUMBERS
)


@given(NAMES)
def test_name_is_parsed_from_its_text(name):
    assert WorkerName.parse(str(name)) == name


@pytest.mark.parametrize("text", ["", "dicom-node/local", "worker", "a/b/c/d/e", "a/b/1/2/-3", "a/b/1/2/³"])
def test_other_texts_are_not_names(text):
    assert WorkerName.parse(text) is None


def test_longest_name_fits_its_column():
    longest = WorkerName("h" * 64, WorkerName.own().boot_id, 2**32 - 1, 2**22, 2**63)
    assert len(str(longest)) <= 255


def test_living_process_is_not_dead():
    own = WorkerName.own()
    assert own == WorkerName.own()
    assert own.lives(own) is True
    with other_process() as (_, other):
        assert other != own
        assert other.lives(own) is True


def test_killed_process_is_dead_before_and_after_its_parent_has_read_its_status():
    own = WorkerName.own()
    with other_process() as (process, other):
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is now a zombie
        assert other.lives(own) is False
        process.wait()
        assert other.lives(own) is False


def test_process_with_the_pid_of_a_dead_one_is_distinguished_from_it():
    own = WorkerName.own()
    with other_process() as (_, other):
        assert replace(other, started_ticks=other.started_ticks - 1).lives(own) is False


@pytest.mark.parametrize("elsewhere", [{"boot_id": "4cf1a0d6-8a5e-4b8c-9a0f-6d3c1b2a7e55"}, {"pid_namespace": 1}])
def test_nothing_is_known_of_another_boot_or_container(elsewhere):
    own = WorkerName.own()
    with other_process() as (process, other):
        process.kill()
        process.wait()
        assert replace(other, **elsewhere).lives(own) is None
        assert other.lives(own) is False


def test_missing_proc_is_a_named_error(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_PROC", tmp_path)
    with pytest.raises(ConfigurationError, match="/proc"):
        WorkerName.own()


def test_proc_of_another_namespace_is_no_evidence(tmp_path, monkeypatch):
    """In a separate PID namespace that shares /proc, the PID of a living worker denotes another process."""
    own = WorkerName.own()
    with other_process() as (process, other):
        (tmp_path / "self").symlink_to("1")
        (tmp_path / str(process.pid)).mkdir()
        (tmp_path / str(process.pid) / "stat").write_text(f"{process.pid} (python) S {'7 ' * 30}")
        monkeypatch.setattr(workers, "_PROC", tmp_path)
        assert other.lives(own) is None
        process.kill()
        process.wait()
        assert other.lives(own) is False
