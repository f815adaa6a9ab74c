"""The DICOM Upper Layer (PS3.8) and DIMSE (PS3.7), once for both directions.

``pdu`` knows the bytes, ``transport`` moves them over one socket, ``dimse`` knows command sets and messages;
``acceptor`` and ``requestor`` are the two ends of an association. pynetdicom's codecs read and write the PDUs of the
negotiation. Its reactor is not used: it polls every millisecond in two threads per association, reads a PDU in
4 096-byte steps, waits without end for one that comes byte by byte, takes PDUs and data sets of any size into memory,
queues a whole object before the first byte leaves (a binary SEG of a whole body has 345 MB), and starts the response
timer when the transmission starts, so that it takes a slow peer for a silent one. Here one PDU of a bounded size is in
memory, and every read and every write has a deadline for the whole of it.

TLS: ``Transport`` takes an ``ssl.SSLSocket`` whose handshake is done as it takes a plain one. The contexts and the
handshake belong where sockets are made: the listener (:mod:`dicom_node.receive.scp`) and ``requestor.connect``.
"""
