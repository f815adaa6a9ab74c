"""Segmentation of CT volumes: numpy in, numpy out. Independent of DICOM networking; never sees a UID."""
