"""UIDs used in several packages, and what has the form of a UID."""

from __future__ import annotations

import re

from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
"""DICOM's only Application Context Name (PS3.7 A.2.1)."""
VERIFICATION = "1.2.840.10008.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
"""Study Root Query/Retrieve Information Model - FIND."""
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"

MULTI_FRAME_CT_SOP_CLASSES = frozenset({str(EnhancedCTImageStorage), str(LegacyConvertedEnhancedCTImageStorage)})
CT_SOP_CLASSES = MULTI_FRAME_CT_SOP_CLASSES | {str(CTImageStorage)}
CT_FOR_PROCESSING_SOP_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.2.3": "CT Image Storage - For Processing",
    "1.2.840.10008.5.1.4.1.1.2.4": "Enhanced CT Image Storage - For Processing",
    "1.2.840.10008.5.1.4.1.1.2.5": "Legacy Converted Enhanced CT Image Storage - For Processing",
}
"""Supplement 252: input of further processing in the scanner's own terms, not images to be read. With their names."""

_LONGEST = 64
_WELL_FORMED = re.compile(r"[0-9]+(?:\.[0-9]+)*")


def is_well_formed_uid(value: str) -> bool:
    """Whether ``value`` has the form of a UID: PS3.5 section 9.1, but leading zeros are allowed, as some write them."""
    return len(value) <= _LONGEST and _WELL_FORMED.fullmatch(value) is not None
