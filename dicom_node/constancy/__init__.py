"""Constancy: does a model still give the answer of its acceptance, and how much do its volumes depend on the scan.

Phantoms whose images are kept with the accepted label maps are segmented again, and the two answers compared within
limits. The measures are those of :mod:`inference.evaluation` and :mod:`inference.measure`.
"""
