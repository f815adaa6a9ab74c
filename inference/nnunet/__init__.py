"""nnU-Net v2 models: read without trusting them, and run by our own sliding window.

========== ====================================================================================
package    plans.json, dataset.json and checkpoints of a model folder, checked; digest; identity
network    the network of a package, its weights loaded without executing anything of the file
grid       source grid <-> the RAS grid of the network's spacing
tiles      overlapping windows, averaged with Gaussian weights, in bounded memory
restore    logits on the network's grid -> smooth labels on the source grid
engine     :class:`NnunetSegmenter`, all of it in order
========== ====================================================================================
"""
