"""What the node does with a series, from its last image to its results: one module per duty.

``completing`` closes series that are whole, ``routing`` asks the rules what happens to them, ``running`` takes jobs
through the analysis, ``delivering`` sends results. Each does what is due and records it in the ledger, so that whatever
ends the process, the next one goes on from there.
"""
