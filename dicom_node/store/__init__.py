"""Store: bytes in the spool, every durable fact in one ledger."""
