"""The processing of a series, from its last image to the delivery of its results: one module per duty.

``completing`` closes complete series, ``routing`` applies the rules to them, ``running`` runs jobs, ``delivering``
sends results. Each does what is due and records it in the ledger, so that a new process can continue after a crash.
"""
