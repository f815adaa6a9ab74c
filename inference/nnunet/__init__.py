"""nnU-Net v2 models, installed as packages (:mod:`inference.models`), run by our own sliding window.

========== ====================================================================================
contract   options, a network that maps windows to channels, and its last layer
engine     :class:`NnunetSegmenter`, all of it in order
cropped    one model in the box of what another one finds
prepare    checks, canonical axes, the network's spacing, the box around the patient, normalised HU
grid       source grid <-> the RAS grid of the network's spacing
body       where the patient is: no window looks at air
tiles      overlapping windows, averaged with Gaussian weights, in bounded memory
restore    channels on the network's grid -> labels on the source grid
device     all of it on one CUDA device
========== ====================================================================================
"""
