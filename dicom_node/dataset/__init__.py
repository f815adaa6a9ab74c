"""Data sets for training and studies: phantom cohorts with a known truth, and conversion to nnU-Net's raw format."""
