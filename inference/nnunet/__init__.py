"""nnU-Net v2 models, installed as packages (:mod:`inference.models`), run by our own sliding window.

========== ====================================================================================
engine     :class:`NnunetSegmenter`, all of it in order
cropped    one model in the box of what another one finds
device     all of it on one CUDA device
host       all of it but the network on the CPU
networks   the networks of a part, run by OpenVINO or torch
limits     which volumes a model accepts, and the memory that segmenting one takes
prepared   a volume that is ready for the network
grid       source grid <-> the RAS grid of the network's spacing
axes       where the source voxels of an axis lie among the network's
windows    where the overlapping windows lie, and their Gaussian weights
body       where the patient is: no window looks at air
machine    what this machine has: a CUDA device, fast arithmetic, cores, memory
failures   what the errors of torch, CUDA and OpenVINO say
contract   what all of them agree on: options, an open part, a network, its last layer
========== ====================================================================================
"""
