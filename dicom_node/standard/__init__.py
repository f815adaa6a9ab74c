"""Standard: what DICOM says, known once."""
