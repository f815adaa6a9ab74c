"""Trains the demo model on phantoms and writes it as an nnU-Net v2 model folder."""
