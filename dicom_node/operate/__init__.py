"""Operate: sweeps, retention and the disk watermark."""
