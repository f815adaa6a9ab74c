"""Messages and the shared memory sent with them, however the socket splits the stream into reads."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from dicom_node.work.channel import Channel, anonymous_memory, mapped


@pytest.fixture
def ends():
    ours, theirs = map(Channel, socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def memory_of(value: int) -> int:
    descriptor = anonymous_memory(8)
    mapped(descriptor, (8,), np.dtype(np.uint8))[...] = value
    return descriptor


def value_in(descriptor: int) -> int:
    value = int(mapped(descriptor, (8,), np.dtype(np.uint8))[0])
    os.close(descriptor)
    return value


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_descriptors_stay_with_their_message_when_one_read_returns_several(ends):
    node, worker = ends
    sent = [memory_of(value) for value in (1, 2, 3, 4)]
    node.send({"infer": 1})  # without a read in between, the kernel joins this message to the next
    node.send({"prepare": 2}, sent[:2])
    node.send({"prepare": 3}, sent[2:])
    for descriptor in sent:
        os.close(descriptor)
    received = [worker.receive() for _ in range(3)]
    assert [message for message, _ in received] == [{"infer": 1}, {"prepare": 2}, {"prepare": 3}]
    assert [[value_in(each) for each in descriptors] for _, descriptors in received] == [[], [1, 2], [3, 4]]


def test_unclaimed_descriptors_are_closed_with_the_channel(ends):
    node, worker = ends
    memory = memory_of(1)
    node.send({"infer": 1})
    node.send({"prepare": 2}, [memory])
    os.close(memory)
    before = open_descriptors()
    worker.receive()
    assert open_descriptors() == before + 1
    worker.close()
    assert open_descriptors() == before - 1  # the socket, too


def test_message_without_its_descriptors_is_refused(ends):
    node, worker = ends
    node._socket.sendall(b'{"prepare": 1, "descriptors": 2}\n')
    with pytest.raises(ValueError, match="expected 2 descriptors, received 0"):
        worker.receive()
