"""The DICOM Conformance Statement (PS3.2), generated from the tables of the code and from objects that it encodes."""
