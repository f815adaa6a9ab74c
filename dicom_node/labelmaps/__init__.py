"""Segmentations in every form in which they are kept, read as label maps on the grid of their CT.

The forms are one NIfTI file with labels and names, a folder with one NIfTI file per structure (the published data set
of the paper), DICOM SEG (binary or label map) and RT Structure Sets. :func:`open_source` tells them apart,
:func:`find_subjects` finds whole data sets: CTs, their segmentations, and what is known about the patients.
"""

from dicom_node.labelmaps.finding import (
    FoundSubjects,
    LeftOut,
    by_referenced_series,
    find_scans,
    find_segmentations,
    find_subjects,
)
from dicom_node.labelmaps.label_map import LabelMap, Overlap
from dicom_node.labelmaps.sources import (
    ContourObject,
    LabelFile,
    LabelSource,
    SegmentationObject,
    StructureFiles,
    open_source,
)
from dicom_node.labelmaps.subjects import DicomImage, Image, NiftiImage, Scan, Subject

__all__ = [
    "ContourObject",
    "DicomImage",
    "FoundSubjects",
    "Image",
    "LabelFile",
    "LabelMap",
    "LabelSource",
    "LeftOut",
    "NiftiImage",
    "Overlap",
    "Scan",
    "SegmentationObject",
    "StructureFiles",
    "Subject",
    "by_referenced_series",
    "find_scans",
    "find_segmentations",
    "find_subjects",
    "open_source",
]
