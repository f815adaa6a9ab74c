"""Compares two label maps of the same CT by the names of their structures; prints JSON.

``python benchmarks/engine_compare.py FIRST FIRST_NAMES SECOND SECOND_NAMES``: a map is a NIfTI file or an array
[z, y, x] of the same grid with a JSON file of names by label, or a DICOM SEG (BINARY) with its own names.
Voxels are equal where both have the same structure; Dice is the mean over the structures of the first that have at
least 100 voxels in it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

LEAST_VOXELS = 100


def read_map(path: Path, names: str) -> tuple[NDArray[np.uint8] | dict[str, NDArray[np.uint8]], dict[int, str]]:
    """Labels [z, y, x] or, for a SEG, [y, x] by the UID of the CT image; and the name of each label."""
    if path.suffix == ".dcm":
        return read_segmentation(path)
    labels = np.load(path) if path.suffix == ".npy" else sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return labels.astype(np.uint8), {int(label): name for label, name in json.loads(Path(names).read_text()).items()}


def read_segmentation(path: Path) -> tuple[dict[str, NDArray[np.uint8]], dict[int, str]]:
    """A BINARY SEG whose frames refer to one CT image each."""
    seg = pydicom.dcmread(path)
    pixels = seg.Rows * seg.Columns
    packed = np.frombuffer(seg.PixelData, np.uint8)
    planes: dict[str, NDArray[np.uint8]] = {}
    for index, groups in enumerate(seg.PerFrameFunctionalGroupsSequence):
        image = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        segment = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        first, last = index * pixels, (index + 1) * pixels
        bits = np.unpackbits(packed[first // 8 : -(-last // 8)], bitorder="little")[first % 8 : first % 8 + pixels]
        plane = planes.setdefault(image, np.zeros(pixels, np.uint8))
        plane[bits != 0] = segment
    names = {s.SegmentNumber: s.SegmentLabel.lower().replace(" ", "_") for s in seg.SegmentSequence}
    return planes, names


def paired(
    first: NDArray[np.uint8] | dict[str, NDArray[np.uint8]], second: NDArray[np.uint8] | dict[str, NDArray[np.uint8]]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    if isinstance(first, dict) and isinstance(second, dict):
        empty = np.zeros_like(next(iter(first.values())))
        images = sorted({*first, *second})
        return np.stack([first.get(i, empty) for i in images]), np.stack([second.get(i, empty) for i in images])
    if isinstance(first, dict) or isinstance(second, dict) or first.shape != second.shape:
        raise SystemExit("the two label maps are on different grids")
    return first, second


def agreement(
    first: NDArray[np.uint8], first_names: Mapping[int, str], second: NDArray[np.uint8], second_names: Mapping[int, str]
) -> dict[str, float | int]:
    common = {name: number for number, name in enumerate(sorted({*first_names.values(), *second_names.values()}), 1)}
    joint = np.zeros((len(common) + 1, len(common) + 1), np.int64)
    tables = [np.zeros(256, np.int64), np.zeros(256, np.int64)]
    for table, names in zip(tables, (first_names, second_names), strict=True):
        for label, name in names.items():
            table[label] = common[name]
    for one, other in zip(first, second, strict=True):
        pairs = tables[0][one].ravel() * len(joint) + tables[1][other].ravel()
        joint += np.bincount(pairs, minlength=joint.size).reshape(joint.shape)
    sizes = joint.sum(axis=1), joint.sum(axis=0)
    counted = [k for k in common.values() if sizes[0][k] >= LEAST_VOXELS]
    dice = [2 * joint[k, k] / (sizes[0][k] + sizes[1][k]) for k in counted]
    total = int(joint.sum())
    return {
        "voxels": total,
        "different": total - int(np.trace(joint)),
        "equal": float(np.trace(joint)) / total,
        "structures": len(counted),
        "mean_dice": float(np.mean(dice)) if dice else 1.0,
        "labelled": float(joint[1:].sum()) / total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for which in ("first", "second"):
        parser.add_argument(which, type=Path)
        parser.add_argument(f"{which}_names")
    arguments = parser.parse_args()
    first, first_names = read_map(arguments.first, arguments.first_names)
    second, second_names = read_map(arguments.second, arguments.second_names)
    one, other = paired(first, second)
    print(json.dumps(agreement(one, first_names, other, second_names)))


if __name__ == "__main__":
    main()
