"""Turn a label map and its measurements into DICOM objects in the source study, each read back before it counts."""
