"""Coded concepts: the anatomy catalogue's codes and the PS3.16 codes that results use to describe themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from highdicom.sr import CodedConcept
from pydicom.sr.coding import Code as DicomCode

from dicom_node.errors import EncodingError

if TYPE_CHECKING:
    from inference.structures import Code

_LONGEST_CODE_MEANING = 64
"""PS3.5 table 6.2-1, VR LO."""

ACQUISITION_EQUIPMENT = DicomCode("109101", "DCM", "Acquisition Equipment")
PROCESSING_EQUIPMENT = DicomCode("109102", "DCM", "Processing Equipment")

MEASUREMENT_REPORT = DicomCode("126000", "DCM", "Imaging Measurement Report")
IMAGING_MEASUREMENTS = DicomCode("126010", "DCM", "Imaging Measurements")
QUALITATIVE_EVALUATIONS = DicomCode("C0034375", "UMLS", "Qualitative Evaluations")
PROCEDURE_REPORTED = DicomCode("121058", "DCM", "Procedure reported")
CT_UNSPECIFIED_BODY_REGION = DicomCode("25045-6", "LN", "CT unspecified body region")
COMMENT = DicomCode("121106", "DCM", "Comment")
FINDINGS_SUMMARY = DicomCode("111017", "DCM", "CAD Processing and Findings Summary")
WITHOUT_FINDINGS = DicomCode("111241", "DCM", "All algorithms succeeded; without findings")
WITH_FINDINGS = DicomCode("111242", "DCM", "All algorithms succeeded; with findings")
NOTHING_SUCCEEDED = DicomCode("111245", "DCM", "No algorithms succeeded; without findings")
"""CID 6047: the codes for "analysed, nothing found", its opposite, and "not processed"."""
ANATOMY_COVERAGE_INCOMPLETE = DicomCode("130576", "DCM", "Anatomy coverage incomplete")
YES = DicomCode("373066001", "SCT", "Yes")

VOLUME = DicomCode("118565006", "SCT", "Volume")
ATTENUATION_COEFFICIENT = DicomCode("112031", "DCM", "Attenuation Coefficient")
MILLILITER = DicomCode("ml", "UCUM", "milliliter")
HOUNSFIELD_UNIT = DicomCode("[hnsf'U]", "UCUM", "Hounsfield unit")
MEAN = DicomCode("373098007", "SCT", "Mean")
STANDARD_DEVIATION = DicomCode("386136009", "SCT", "Standard Deviation")
MINIMUM = DicomCode("255605001", "SCT", "Minimum")
MAXIMUM = DicomCode("56851009", "SCT", "Maximum")
MEDIAN = DicomCode("373099004", "SCT", "Median")

CUBIC_MILLIMETER = DicomCode("mm3", "UCUM", "cubic millimeter")
IBSI_VOLUME = DicomCode("YEKZ", "IBSI", "Volume from Voxel Summation")
IBSI_MEAN = DicomCode("Q4LE", "IBSI", "Mean intensity")
IBSI_MINIMUM = DicomCode("1GSF", "IBSI", "Minimum intensity")
IBSI_MAXIMUM = DicomCode("84IY", "IBSI", "Maximum intensity")
IBSI_MEDIAN = DicomCode("Y12H", "IBSI", "Median intensity")
"""Image Biomarker Standardisation Initiative; the first code is in CID 7477. There is none for the standard deviation:
intensity variance (ECT3) is another quantity.
"""

MESH_VOLUME = DicomCode("RNU0", "IBSI", "Volume of Mesh")
MESH_SURFACE = DicomCode("C0JK", "IBSI", "Surface Area of Mesh")
SPHERICITY = DicomCode("QCFX", "IBSI", "Sphericity")
MAXIMUM_DIAMETER = DicomCode("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
MAJOR_AXIS = DicomCode("TDIC", "IBSI", "Major Axis in 3D Length")
MINOR_AXIS = DicomCode("P9VJ", "IBSI", "Minor Axis in 3D Length")
LEAST_AXIS = DicomCode("7J51", "IBSI", "Least Axis in 3D Length")
ELONGATION = DicomCode("Q3CK", "IBSI", "Elongation")
FLATNESS = DicomCode("N17B", "IBSI", "Flatness")
"""CID 7477, Global Shape Descriptors."""
SQUARE_MILLIMETER = DicomCode("mm2", "UCUM", "square millimeter")
MILLIMETER = DicomCode("mm", "UCUM", "millimeter")
NO_UNITS = DicomCode("1", "UCUM", "no units")

PERCENTILE_RANKING = DicomCode("121415", "DCM", "Percentile Ranking of measurement")
"""CID 227, Sample Statistical Descriptors."""
PERCENT = DicomCode("%", "UCUM", "Percent")

_ALGORITHM_FAMILIES = {
    "nnU-Net": DicomCode("123110", "DCM", "Artificial Intelligence"),
    # CID 7162 has no "thresholding"; histogram analysis, too, assigns classes to voxel values
    "Thresholding": DicomCode("123105", "DCM", "Histogram Analysis"),
}


def concept(code: Code) -> CodedConcept:
    """The catalogue's ``code`` as an item of a code sequence.

    Raises:
        EncodingError: the meaning is longer than a Code Meaning may be.
    """
    if len(code.meaning) > _LONGEST_CODE_MEANING:
        raise EncodingError(
            f"code {code.value} ({code.scheme}) has a meaning of {len(code.meaning)} characters, expected at most "
            f"{_LONGEST_CODE_MEANING}"
        )
    return CodedConcept(code.value, code.scheme, code.meaning)


def algorithm_family(family: str) -> DicomCode:
    """CID 7162 code of a model's family.

    Raises:
        EncodingError: the family has no code.
    """
    try:
        return _ALGORITHM_FAMILIES[family]
    except KeyError:
        known = ", ".join(_ALGORITHM_FAMILIES)
        raise EncodingError(f"algorithm family {family!r} has no code, expected one of {known}") from None
