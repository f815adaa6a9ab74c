"""PDUs of the Upper Layer (PS3.8 section 9.3): their constants, and rejections as values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an association is rejected: the triple of the A-ASSOCIATE-RJ, and a reason for people."""

    result: int
    source: int
    diagnostic: int
    reason: str


APPLICATION_CONTEXT_NOT_SUPPORTED = (1, 1, 2)
CALLING_AE_NOT_RECOGNISED = (1, 1, 3)
CALLED_AE_NOT_RECOGNISED = (1, 1, 7)
LOCAL_LIMIT_EXCEEDED = (2, 3, 2)
