"""Encode: label maps and measurements become DICOM SEG and TID 1500 SR."""
