"""Operate: sweeps and retention."""
