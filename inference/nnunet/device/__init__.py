"""Everything from HU to labels on one torch device: volume up once, labels down once, nothing between but kernels.

======== ==========================================================================================================
source   HU up, the canonical view, resampling bit for bit as on the CPU, the box to look at, normalisation
volume   one volume and its label map, until they have to leave the device
windows  windows in batches, Gaussian sums on the device, a bounded queue
restore  channels -> labels on the source grid, a chunk of planes at a time
network  parts opened ahead of their turn; CUDA graphs, torch.compile
fallback memory ran out: smaller batches, then sums on the host, then the CPU
run      :class:`DeviceRun`, all of it in order
======== ==========================================================================================================
"""
