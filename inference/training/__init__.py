"""Training of the demo model on phantoms, in nnU-Net v2 folder format."""
