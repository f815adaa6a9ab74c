"""TCP ports for programs that need one before they start."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST = 15000
_HELD: list[socket.socket] = []
"""The reservations of this process; the kernel drops them when it ends, however it ends."""


def free_port() -> int:
    """A free loopback port that no other test process gets while this process lives.

    Asking the kernel for a port and closing it again is a race: another connection may get it. This port is below the
    range from which the kernel assigns ports, and a name in the abstract socket namespace reserves it among the test
    processes of this machine.
    """
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = list(range(_LOWEST, max(first_ephemeral, _LOWEST + 1000)))
    random.shuffle(candidates)
    for port in candidates:
        reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            reservation.bind(f"\0dicom-node-tests-port-{port}")
            with socket.create_server(("127.0.0.1", port)):
                pass
        except OSError:
            reservation.close()
            continue
        _HELD.append(reservation)
        return port
    raise AssertionError("no free port on this machine")
