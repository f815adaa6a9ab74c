"""DICOM Segmentation, BINARY and as a label map, and its read-back check."""
