#!/usr/bin/env bash
# pynetdicom 3.0.4 with pydicom 3.0.2: what a listener keeps of association requests that it rejects.
#
# A peer whose AE title is not in `require_calling_aet` sends association requests with 128 presentation contexts, whose
# transfer syntaxes are texts that are no UIDs, different ones each time. All are rejected (A-ASSOCIATE-RJ, calling AE
# title not recognised), and each connection is closed before the next one is opened.
#
# Guess (not blind): nothing is kept of a request that was rejected.
# Seen: the request is decoded before the AE title is looked at; pydicom warns of each text, and Python's warnings module
#       keeps every text that was warned of, to warn once only. The memory grows by some 50 kB for each request, for as
#       long as the process lives (and each text is written to stderr). With Python's option `-W ignore` (or a filter that
#       ignores the warnings) nothing is kept.
#
# Exits non-zero if any of this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pydicom==3.0.2 pynetdicom==3.0.4
cd "$work"
cat > rejected.py <<'PYTHON'
import logging
import socket
import struct
import sys

import pynetdicom
from pynetdicom import AE
from pynetdicom.sop_class import Verification

WARM, REQUESTS, CONTEXTS = 50, 300, 128


def item(kind, value):
    return struct.pack(">BxH", kind, len(value)) + value


def request(number):
    body = struct.pack(">H2x16s16s32x", 1, b"LISTENER".ljust(16), b"STRANGER".ljust(16))
    body += item(0x10, b"1.2.840.10008.3.1.1.1")
    for context in range(CONTEXTS):
        syntax = f"no UID {number:06} {context:03}".ljust(60, "x").encode()
        body += item(0x20, bytes((2 * context + 1, 0, 0, 0)) + item(0x30, Verification.encode()) + item(0x40, syntax))
    body += item(0x50, item(0x51, struct.pack(">I", 16382)) + item(0x52, b"1.2.3"))
    return struct.pack(">BxI", 1, len(body)) + body


def memory_kb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


logging.disable(logging.CRITICAL)
listener = AE("LISTENER")
listener.require_calling_aet = ["SCANNER"]
listener.add_supported_context(Verification)
server = listener.start_server(("127.0.0.1", 0), block=False)
for number in range(WARM + REQUESTS):
    if number == WARM:
        before_kb = memory_kb()
    with socket.create_connection(server.server_address, 10) as peer:
        peer.sendall(request(number))
        answer = peer.recv(10)
        assert answer[0] == 3, "not rejected"
        while peer.recv(1000):
            pass
kept_kb = (memory_kb() - before_kb) / REQUESTS
server.shutdown()
ignored = "ignore" in sys.warnoptions
shown = "warnings ignored" if ignored else "as Python starts"
print(f"pynetdicom {pynetdicom.__version__}, {shown}: {kept_kb:.0f} kB kept of each rejected request")
assert (kept_kb < 10) is ignored, "the behaviour has changed"
PYTHON
"$work/venv/bin/python" rejected.py 2> "$work/stderr" || { tail -3 "$work/stderr"; exit 1; }
"$work/venv/bin/python" -W ignore rejected.py
