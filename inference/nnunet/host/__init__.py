"""From HU to labels on the CPU, in numpy, whatever runs the network.

========== =================================================================================
prepare    canonical axes, the network's spacing, the box around the patient, normalised HU
resample   HU on the network's grid
averaging  windows through the network, averaged with Gaussian weights, in bounded memory
restore    channels on the network's grid -> labels on the source grid
strip      the part of that work that one thread does
========== =================================================================================
"""
