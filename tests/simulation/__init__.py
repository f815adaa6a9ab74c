"""The production spool, ledger and pipeline on a simulated disk and clock, crashed at any durable call."""
