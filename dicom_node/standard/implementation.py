"""Identifies this implementation in files and associations (PS3.7 D.3.3.2, PS3.10 7.1)."""

from __future__ import annotations

from dicom_node import __version__

IMPLEMENTATION_CLASS_UID = "2.25.230527419337446921067063318462370115849"
VERSION_NAME = f"DICOM_NODE_{__version__}"[:16]
"""The Implementation Version Name, at most 16 characters."""
