"""From HU to labels on the CPU in numpy; the network may run anywhere.

========== =================================================================================
prepare    canonical axes, the network's spacing, the box around the patient, normalised HU
resample   HU on the network's grid
averaging  runs windows and averages them with Gaussian weights, in bounded memory
restore    channels on the network's grid -> labels on the source grid
strip      the part of restoring that one thread does
========== =================================================================================
"""
