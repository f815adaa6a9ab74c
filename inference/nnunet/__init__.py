"""nnU-Net v2 models, installed as packages (:mod:`inference.models`), run by our own sliding window.

========== ====================================================================================
grid       source grid <-> the RAS grid of the network's spacing
tiles      overlapping windows, averaged with Gaussian weights, in bounded memory
restore    logits on the network's grid -> smooth labels on the source grid
engine     :class:`NnunetSegmenter`, all of it in order
========== ====================================================================================
"""
