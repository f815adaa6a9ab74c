"""A DICOM node that segments CT: receive, reconstruct, segment, encode, deliver. Research software."""

__version__ = "0.2.0"
