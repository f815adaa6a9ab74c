"""Reconstruct: a series becomes one regular volume in Hounsfield units, or is refused with the numbers."""
