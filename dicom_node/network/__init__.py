"""The DICOM Upper Layer (PS3.8) and DIMSE (PS3.7), shared by both directions.

``pdu`` encodes and decodes PDUs, ``transport`` sends and receives them over one socket, ``dimse`` handles command sets
and messages; ``acceptor`` and ``requestor`` are the two ends of an association. pynetdicom's codecs read and write the
PDUs of the negotiation. Its reactor is not used: it polls every millisecond in two threads per association, reads a PDU
in 4 096-byte steps, waits indefinitely for a PDU that arrives byte by byte, accepts PDUs and data sets of any size into
memory, queues a whole object before it sends the first byte (a binary SEG of a whole body has 345 MB), and starts the
response timer at the start of transmission, so that a slow peer looks like a silent one. Here, only one PDU of bounded
size is in memory, and every read and write as a whole has a deadline.

TLS: ``Transport`` accepts a plain socket or an ``ssl.SSLSocket`` after its handshake. Contexts and handshakes belong
where sockets are created: the listener (:mod:`dicom_node.receive.scp`) and ``requestor.connect``.
"""
