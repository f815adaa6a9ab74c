"""Segment: the engine without a network. Files in, files out; no ledger, no spool, no settings file."""
