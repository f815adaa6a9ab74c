"""Labelled synthetic CT patients: all 104 structures of the paper with plausible position, size and attenuation.

They do not replace real patients. They provide a known truth for tests, the demo, benchmarks and the training of the
demo model. ``Patient.from_seed(seed)`` draws a body, ``render`` puts it on any grid, ``phantom`` does both.
"""

from inference.phantom.case import FieldOfView, Phantom, grid, phantom, whole_body_grid, write_nifti
from inference.phantom.patient import Patient
from inference.phantom.render import KERNELS, Kernel, render, render_truth, thicker_slices

__all__ = [
    "KERNELS",
    "FieldOfView",
    "Kernel",
    "Patient",
    "Phantom",
    "grid",
    "phantom",
    "render",
    "render_truth",
    "thicker_slices",
    "whole_body_grid",
    "write_nifti",
]
