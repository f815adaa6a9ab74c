"""Runs nnU-Net v2 models, installed as packages (:mod:`inference.models`), with our own sliding window.

========== ====================================================================================
engine     :class:`NnunetSegmenter`: the whole run, in order
cropped    a model that runs in the bounding box of structures that another model finds
device     everything on one CUDA device
host       everything except the network, on the CPU
networks   the networks of a part, run by OpenVINO or torch
limits     which volumes a model accepts, and how much memory segmentation needs
prepared   a volume that is ready for the network
grid       source grid <-> RAS grid with the network's spacing
axes       positions of source voxels among network voxels, along one axis
windows    positions of the overlapping windows, and their Gaussian weights
body       the region that holds the patient; windows outside it are skipped
machine    what this machine offers: a CUDA device, fast arithmetic, cores, memory
failures   classifies the errors of torch, CUDA and OpenVINO
contract   the shared types: options, an open part, a network, its last layer
========== ====================================================================================
"""
