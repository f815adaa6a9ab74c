"""Waiting for other threads and processes, with a limit that is only reached if something is wrong."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")

_LOOK_AGAIN_S = 0.02


def wait_until(
    condition: Callable[[], Value], limit_s: float = 60, otherwise: Callable[[], object] | None = None
) -> Value:
    """Wait for the first true value of ``condition``; ``otherwise`` describes the state if it never comes."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {limit_s:g} s: {otherwise() if otherwise else condition}")
        time.sleep(_LOOK_AGAIN_S)
    return value


def wait_for_port(port: int, limit_s: float = 30, host: str = "127.0.0.1") -> None:
    """Wait until something accepts connections on the port."""

    def listens() -> bool:
        try:
            socket.create_connection((host, port), 1).close()
        except OSError:
            return False
        return True

    wait_until(listens, limit_s, lambda: f"nothing listens on port {port}")
