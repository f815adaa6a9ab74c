"""PDUs over one socket, plain or TLS. Every read and every write has one deadline for all of its bytes.

The socket is non-blocking: available bytes are read immediately into a buffer, and the wait for more ends at the
deadline, however slowly they arrive. The buffer is small until a larger PDU comes: a flood of peers that send nothing,
or only an association request, must not cost the memory of as many images. One call reads what the kernel (or the TLS
record) has: usually a whole PDU and the header of the next. This needs no flag or option that an ``ssl.SSLSocket`` does
not support.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from contextlib import suppress

from dicom_node.errors import ConnectionLost, ProtocolFault
from dicom_node.network.pdu import HEADER, KNOWN_TYPES, LARGEST_ASSOCIATE, AbortReason

KEEPALIVE_IDLE_S = 30
_LINGER_S = 1.0
_READ_AHEAD = 16 * 1024
"""Bytes to read beyond the current PDU, which usually saves a call for the next header; more would cost copying."""
_FIRST_BUFFER = 4 * 1024
"""Bytes; enough for the AE titles of a stranger and for most association requests."""
_LONGEST_POLL_MS = 2**31 - 1
_WANTS_READ = (BlockingIOError, ssl.SSLWantReadError)
_WANTS_WRITE = ssl.SSLWantWriteError


class StopSignal:
    """Ends the wait for a peer's next message in every transport that has the signal; set once, from any thread.

    It is a descriptor that becomes and stays readable. Shutting down the peer's socket would not do: OpenSSL treats the
    end of its input as an attack, and nothing could be sent to the peer any more.
    """

    def __init__(self) -> None:
        self._waited_for, self._held_open = socket.socketpair()
        self.is_set = False

    def set(self) -> None:
        """Set the signal."""
        self.is_set = True
        self._held_open.close()

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._waited_for.fileno()

    def close(self) -> None:
        """Release the descriptors; no transport may use the signal any more."""
        self._held_open.close()
        self._waited_for.close()


class Transport:
    """PDUs over one connected socket. For one thread; another may call :func:`cut`.

    ``acknowledges_at_once``: send TCP acknowledgements without delay. A peer that answers in two small segments (Nagle)
    would otherwise wait 40 ms for them each time.
    """

    def __init__(self, connection: socket.socket, largest_pdu: int, *, acknowledges_at_once: bool = False) -> None:
        """Take over ``connection``, which is connected and, for TLS, after its handshake.

        Raises:
            ConnectionLost: it was already reset.
        """
        self._socket = connection
        self._largest_pdu = largest_pdu
        self._largest_body = max(largest_pdu, LARGEST_ASSOCIATE)
        self._buffer = memoryview(bytearray(_FIRST_BUFFER))
        self._start = self._end = 0
        self._acknowledges_at_once = acknowledges_at_once and hasattr(socket, "TCP_QUICKACK")
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        except OSError as error:
            connection.close()
            raise ConnectionLost(type(error).__name__) from error

    def read_header(self, ends: float, stop: StopSignal | None = None) -> tuple[int, int]:
        """Type and length of the next PDU, there by ``ends`` (of the monotonic clock, infinity for no limit).

        Raises:
            ConnectionLost: closed, reset or silent, or ``stop`` was given before it was there.
            ProtocolFault: a type that PS3.8 does not know.
        """
        kind, length = HEADER.unpack(self._read(HEADER.size, ends, stop))
        if kind not in KNOWN_TYPES:
            raise ProtocolFault(AbortReason.UNRECOGNISED_PDU, f"PDU type {kind}")
        return kind, length

    def read_body(self, length: int, ends: float) -> memoryview:
        """The rest of a PDU, there by ``ends``; valid until the next header is read.

        Raises:
            ConnectionLost: closed, reset or too slow.
            ProtocolFault: larger than any PDU may be.
        """
        if length > self._largest_body:
            raise ProtocolFault(AbortReason.INVALID_PARAMETER, f"PDU of {length} bytes")
        return self._read(length, ends)

    def read_pdu(
        self, silence_s: float, largest: int | None = None, stop: StopSignal | None = None
    ) -> tuple[int, memoryview]:
        """The next PDU: its type and body, which is valid until the next call.

        The header may take ``silence_s`` to come, and then the rest as long again; infinity for no limit. ``largest``:
        bytes that the body may have, where it is not what was negotiated. ``stop``: given to end the wait for a header.

        Raises:
            ConnectionLost: closed, reset or silent, or ``stop`` was given.
            ProtocolFault: unknown type, or larger than was negotiated.
        """
        kind, length = self.read_header(time.monotonic() + silence_s, stop)
        limit = self._largest_pdu if largest is None else largest
        if length > limit:
            raise ProtocolFault(AbortReason.INVALID_PARAMETER, f"PDU of {length} bytes, expected at most {limit}")
        return kind, self.read_body(length, time.monotonic() + silence_s)

    def send(self, encoded: bytes, within_s: float) -> None:
        """Send a whole PDU.

        Raises:
            ConnectionLost: the peer is gone or does not read.
        """
        ends = time.monotonic() + within_s
        unsent = memoryview(encoded)
        while unsent:
            try:
                unsent = unsent[self._socket.send(unsent) :]
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, ends)
            except (BlockingIOError, _WANTS_WRITE):
                self._wait(select.POLLOUT, ends)
            except OSError as error:
                raise ConnectionLost(type(error).__name__) from error

    def close_after(self, last_words: bytes) -> None:
        """Send ``last_words`` and end the connection.

        Incoming bytes are read and discarded for a moment: closing a socket with unread bytes resets the connection,
        and the peer would never see ``last_words``.
        """
        with suppress(OSError, ConnectionLost):
            self.send(last_words, _LINGER_S)
            if isinstance(self._socket, ssl.SSLSocket):
                with suppress(ssl.SSLError):
                    self._socket.unwrap()  # says close_notify; the peer's own is not waited for
            socket.socket.shutdown(self._socket, socket.SHUT_WR)  # by its own method, see cut
            ends = time.monotonic() + _LINGER_S
            while time.monotonic() < ends:
                self._start = self._end = 0
                self._receive(len(self._buffer), ends)
        self.close()

    def close(self) -> None:
        """Close the socket."""
        with suppress(OSError):
            self._socket.close()

    def _read(self, count: int, ends: float, stop: StopSignal | None = None) -> memoryview:
        """The next ``count`` bytes, which are then read."""
        if self._start == self._end:
            self._start = self._end = 0
        if self._start + count > len(self._buffer):
            unread = self._buffer[self._start : self._end]
            if count > len(self._buffer):
                self._buffer = memoryview(bytearray(self._largest_body + HEADER.size + _READ_AHEAD))
            self._start, self._end = 0, len(unread)
            self._buffer[: len(unread)] = unread
        while self._end - self._start < count:
            self._receive(self._start + count + _READ_AHEAD, ends, stop)
        self._start += count
        return self._buffer[self._start - count : self._start]

    def _receive(self, until: int, ends: float, stop: StopSignal | None = None) -> None:
        """At least one byte more, up to ``until`` in the buffer."""
        room = self._buffer[self._end : until]
        while True:
            try:
                received = self._socket.recv_into(room, len(room))
            except _WANTS_READ:
                self._wait(select.POLLIN, ends, stop)
            except _WANTS_WRITE:
                self._wait(select.POLLOUT, ends)
            except OSError as error:
                raise ConnectionLost(type(error).__name__) from error
            else:
                if not received:
                    is_inside = self._end > self._start
                    raise ConnectionLost("closed inside a PDU" if is_inside else "closed by the peer")
                self._end += received
                return

    def _wait(self, event: int, ends: float, stop: StopSignal | None = None) -> None:
        if self._acknowledges_at_once and event == select.POLLIN:
            # the kernel resets this option
            with suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        left_ms = (ends - time.monotonic()) * 1e3
        poll = select.poll()
        poll.register(self._socket, event)
        if stop is not None:
            poll.register(stop, select.POLLIN)
        ready = poll.poll(left_ms if left_ms < _LONGEST_POLL_MS else None) if left_ms > 0 else []
        if not ready:
            raise ConnectionLost("the peer was silent or too slow")
        if stop is not None and ready[0][0] == stop.fileno() and len(ready) == 1:
            raise ConnectionLost("the node is stopping")


def cut(connection: socket.socket) -> None:
    """End a connection while another thread waits for it.

    This calls ``socket.shutdown`` even for TLS: ``SSLSocket.shutdown`` would drop TLS, and the other thread would
    continue in clear text.
    """
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
