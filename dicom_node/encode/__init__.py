"""Encode: a label map and its measurements become DICOM SEG and TID 1500 SR, read back and checked."""
