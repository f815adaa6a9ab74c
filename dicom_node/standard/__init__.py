"""Standard: the facts of the DICOM standard, each in one place."""
