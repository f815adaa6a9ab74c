"""The transfer syntaxes that preserve every value of a CT: one list for the network and for decoding.

Not included: Deflated Explicit VR, because a file of 1.5 MB can inflate to 1.5 GB before anything can be checked;
JPEG-LS near-lossless (.81), JPEG 2000 (.91) and HTJ2K (.203), which may be lossy.
"""

from __future__ import annotations

from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
"""As the node accepts and sends them."""
NATIVE = frozenset({*UNCOMPRESSED, ExplicitVRBigEndian})
"""In files; big endian is retired, so that it is read but not accepted on the network."""
JPEG = frozenset({JPEGLossless, JPEGLosslessSV1, JPEGLSLossless})
JPEG_2000 = frozenset({JPEG2000Lossless, HTJ2KLossless, HTJ2KLosslessRPCL})
COMPRESSED = JPEG | JPEG_2000 | {RLELossless}
"""Lossless by definition."""
LOSSLESS = NATIVE | COMPRESSED


def decodable() -> frozenset[str]:
    """What a sender may use: uncompressed little endian, and the lossless syntaxes whose decoders are installed."""
    compressed = (uid for uid in COMPRESSED if get_decoder(uid).is_available)
    return frozenset(str(uid) for uid in (*UNCOMPRESSED, *compressed))
