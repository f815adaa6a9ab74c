"""Segmentation of CT volumes: numpy in, numpy out. Knows nothing of DICOM networking and never sees a UID."""
