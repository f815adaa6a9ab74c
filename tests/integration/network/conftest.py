"""TLS with certificates made for the test."""

from __future__ import annotations

import ssl

import pytest
import trustme


@pytest.fixture(scope="session")
def contexts():
    """TLS contexts for a server and a client that trusts it."""
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client
