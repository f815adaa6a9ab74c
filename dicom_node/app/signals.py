"""How a process of the node is asked to stop."""

from __future__ import annotations

import signal
import socket
import threading


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set; the process must watch it.

    A handler runs in the main thread, between any two of its steps. If it set the event itself while the main thread
    has the lock of the event, in the middle of waiting for it, it would wait for that lock for ever: so another thread
    sets it, which is told of the signal through a socket.
    """
    stop = threading.Event()
    told, tells = socket.socketpair()
    tells.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(tells.detach(), warn_on_full_buffer=False)

    def wait() -> None:
        while told.recv(1):
            stop.set()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop
