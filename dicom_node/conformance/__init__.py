"""The DICOM Conformance Statement (PS3.2), made from the tables and objects of the code that it speaks of."""
