"""Tags of attributes that results are written and read by as bytes (PS3.6)."""

from __future__ import annotations

PIXEL_DATA = 0x7FE00010
PER_FRAME_FUNCTIONAL_GROUPS = 0x52009230
