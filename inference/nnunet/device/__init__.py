"""From HU to labels on one torch device: the volume is uploaded once, the labels are downloaded once.

======== ==========================================================================================================
source   upload, the canonical view, resampling (bit-equal with the CPU), the box to segment, normalisation
volume   one volume and its label map, as long as they fit on the device
windows  windows in batches, Gaussian sums on the device, a bounded queue
restore  channels -> labels on the source grid, a chunk of planes at a time
network  parts loaded ahead of their turn; CUDA graphs, torch.compile
fallback if memory runs out: smaller batches, then sums on the host, then the CPU
run      :class:`DeviceRun`: the whole run, in order
======== ==========================================================================================================
"""
