"""Training cases: phantoms on the network's grid, rendered once and kept in a folder.

A case is one synthetic patient from the vertex to mid-thigh, on an isotropic grid of the network's spacing with random
origin, so that no structure always falls on voxel centres. Arrays are stored in nnU-Net's order, as the network sees
them: RAS canonical, indexed [z, y, x] (x increases to the patient's Right, y to Anterior, z to Superior).
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from inference.phantom import Patient, render, whole_body_grid
from inference.structures import paper_labels

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FIRST_TRAINING_SEED = 100_000
"""Smaller seeds are reserved for tests, demo and evaluation."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One training case in RAS order [z, y, x]."""

    hu_zyx: NDArray[np.int16]
    labels_zyx: NDArray[np.uint8]
    boundary_zyx: NDArray[np.bool_]
    """Voxels with a neighbour of another label, where segmentation is hardest."""


def make_cases(folder: Path, count: int, spacing_mm: float, processes: int) -> list[Path]:
    """Render those of ``count`` cases that are missing in ``folder``; return all files in ascending order of seed."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"case_{FIRST_TRAINING_SEED + k}_{spacing_mm:g}mm.npz" for k in range(count)]
    missing = [k for k, file in enumerate(files) if not file.exists()]
    make = partial(_make_case, spacing_mm=spacing_mm)
    seeds = [FIRST_TRAINING_SEED + k for k in missing]
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            list(pool.map(make, seeds, [files[k] for k in missing]))
    else:
        for seed, k in zip(seeds, missing, strict=True):
            make(seed, files[k])
    return files


def load_case(file: Path) -> Case:
    """Read a case that :func:`make_cases` wrote."""
    with np.load(file) as arrays:
        return Case(arrays["hu"], arrays["labels"], arrays["boundary"])


def _make_case(seed: int, file: Path, spacing_mm: float) -> None:
    patient = Patient.from_seed(seed)
    origin = np.random.default_rng([seed, 3]).uniform(-spacing_mm, 0.0, 3)
    geometry = whole_body_grid(patient, (spacing_mm, spacing_mm, spacing_mm), shift_mm=tuple(origin))
    label_by_name = {name: label for label, name in paper_labels().items()}
    volume, labels = render(patient, geometry, label_by_name)
    labels = np.ascontiguousarray(labels[:, ::-1, ::-1])
    boundary = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3)
    partial_file = file.with_suffix(".partial.npz")
    np.savez(partial_file, hu=np.ascontiguousarray(volume.voxels_zyx[:, ::-1, ::-1]), labels=labels, boundary=boundary)
    partial_file.replace(file)
