"""In which orientation a model was trained to see the patient, told by the reader of its plans or by who installs it.

An orientation is three letters as nibabel's ``aff2axcodes`` gives them for a NIfTI file: the directions in the patient
to which the file's first, second and third axis ascend (R or L, A or P, S or I). nnU-Net indexes the array the other
way round, [third, second, first]. Its readers (nnunetv2 2.8.1, nnunetv2/imageio) differ in what they make of a file:

============================ ========================================================================================
NibabelIOWithReorient        to the closest RAS
SimpleITKIOWithReorient      to RAS
SimpleITKIO, NibabelIO       nothing: the array as it is stored, whatever its orientation. SimpleITKIO is the default
Tiff3DIO, NaturalImage2DIO   no orientation at all
============================ ========================================================================================

A model whose reader does not reorient has learned the orientation of its training files, and nothing in its folder says
which that was. Axial CT that ITK converted (SimpleITK, 3D Slicer, plastimatch) is LPS, like the frames of a DICOM
series; what dcm2niix or dicom2nifti converted is LAS; public data sets are RAS, LAS or LPS, some of them mixed. A wrong
guess swaps left and right, so the person who installs the model must say it. Every series is then brought to that
orientation, however its frames lie: a patient scanned prone or feet first is seen as the training patients were.
"""

from __future__ import annotations

from itertools import permutations, product

from inference.errors import ModelPackageError

CANONICAL = "RAS"
_ASCENDING = ("RL", "AP", "SI")
"""The two directions of the patient's x, y and z axis."""
_REORIENTED = {"NibabelIOWithReorient": CANONICAL, "SimpleITKIOWithReorient": CANONICAL}
_AS_STORED = ("SimpleITKIO", "NibabelIO")
READERS = frozenset((*_REORIENTED, *_AS_STORED))
"""nnU-Net's readers of volumes with an orientation."""
ORIENTATIONS = frozenset("".join(code) for axes in permutations(_ASCENDING) for code in product(*axes))
"""All 48."""


def orientation_of(reader: str | None, stated: str | None) -> str:
    """The orientation that a model was trained in.

    Args:
        reader: ``image_reader_writer`` in plans.json, or what dataset.json overwrites it with; None: not named.
        stated: what the person who installs says.

    Raises:
        ModelPackageError: the reader does not tell and nobody says, or what is said is none or contradicts the reader.
    """
    if stated is not None and stated not in ORIENTATIONS:
        raise ModelPackageError(f"orientation {stated[:80]!r} must be three letters such as RAS, LPS or LAS")
    known = None if reader is None else _REORIENTED.get(reader)
    if known is None and stated is None:
        raise ModelPackageError(f"{_why_unknown(reader)}; {_ADVICE}")
    if known is not None and stated not in (None, known):
        raise ModelPackageError(f"plans.json names {reader}, which reads every file as {known}, not as {stated}")
    return known or stated or CANONICAL


_ADVICE = (
    "state the orientation of the training files with --orientation. For a NIfTI file, "
    "nibabel.aff2axcodes(nibabel.load(file).affine) gives its three letters: usually LPS if SimpleITK or 3D Slicer "
    "converted it from DICOM, LAS if dcm2niix did. With a wrong orientation, left and right are swapped"
)


def _why_unknown(reader: str | None) -> str:
    if reader is None:
        return "plans.json names no image_reader_writer"
    if reader in _AS_STORED:
        return f"plans.json names {reader}, which reads files in the orientation in which they are stored"
    return f"plans.json names {reader[:80]!r}, a reader whose orientation is not known"


def directions_xyz(orientation: str) -> str:
    """The same directions in the order of the patient's axes: ``LPS`` of ``PLS`` and of ``SPL``."""
    return "".join(next(letter for letter in orientation if letter in axis) for axis in _ASCENDING)


def array_axes(orientation: str) -> tuple[int, int, int]:
    """For each axis of nnU-Net's array, the patient's axis that it runs along: 0 for z, 1 for y, 2 for x."""
    first, second, third = (
        next(2 - number for number, axis in enumerate(_ASCENDING) if letter in axis) for letter in reversed(orientation)
    )
    return first, second, third
