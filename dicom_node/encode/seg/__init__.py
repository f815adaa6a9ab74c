"""DICOM Segmentation (BINARY and LABELMAP) and its read-back check."""
