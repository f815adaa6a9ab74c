"""The input of all writers in ``benchmarks/encode.py``: one CT series, its labels, and dcmqi's descriptions.

``python benchmarks/encode_inputs.py --folder FOLDER [--planes N]`` writes the series as files, HU and labels as arrays,
the labels as an image of ITK, and dcmqi's descriptions of a SEG and an SR. 104 ellipsoids with a rough surface, each on
a quarter of the planes: 10,400 BINARY frames at 400 planes.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import SimpleITK as sitk  # noqa: N813
from pydicom import Dataset, dcmread

sys.path.insert(0, str(Path(__file__).parents[1]))
from dicom_node.demo.ct_series import SyntheticPatient, write_ct_series
from dicom_node.types import Reconstruction, SourceFrame
from inference.measure import measure
from inference.structures import paper_labels, structure
from inference.types import Geometry, Measurements, ModelIdentity, Segmentation, Volume

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from inference.structures import Code
    from inference.types import StructureMeasurement

ROWS = 512
SPACING_ZYX_MM = (1.5, 0.8, 0.8)
STRUCTURES_WIDE, STRUCTURES_HIGH = 13, 8
MODEL = ModelIdentity("benchmark", "1", "00" * 32, "nnU-Net")
SEG_CLASS, SEG_INSTANCE, SEG_SERIES = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.4", "1.2.5"
"""The SEG that reports refer to."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run with everything needed to make its results."""

    reconstruction: Reconstruction
    labels: Segmentation
    measurements: Measurements

    @classmethod
    def of(cls, headers: Sequence[Dataset], hu_zyx: NDArray[np.int16], labels_zyx: NDArray[np.uint8]) -> Self:
        grid = grid_of(labels_zyx.shape[0])
        volume = Volume(hu_zyx, grid)
        frames = tuple(SourceFrame(header.SOPInstanceUID, header.SOPClassUID) for header in headers)
        reconstruction = Reconstruction(volume=volume, source=volume, frames=frames, headers=tuple(headers))
        labels = Segmentation(labels_zyx, grid, paper_labels(), MODEL)
        return cls(reconstruction, labels, measure(volume, labels))

    @classmethod
    def read(cls, folder: Path) -> Self:
        headers = [dcmread(path, stop_before_pixels=True) for path in series_files(folder)]
        return cls.of(headers, np.load(folder / "hu.npy"), np.load(folder / "labels.npy"))

    @classmethod
    def small(cls, folder: Path, planes: int = 8) -> Self:
        """The first images of the series, with all structures on them."""
        headers = [dcmread(path, stop_before_pixels=True) for path in series_files(folder)[:planes]]
        labels_zyx = labels_of(planes)
        return cls.of(headers, hu_of(labels_zyx), labels_zyx)


def series_files(folder: Path) -> list[Path]:
    return sorted((folder / "ct").iterdir())


def grid_of(planes: int) -> Geometry:
    dz, dy, dx = SPACING_ZYX_MM
    return Geometry((planes, ROWS, ROWS), np.diag([dx, dy, dz, 1.0]))


def labels_of(planes: int) -> NDArray[np.uint8]:
    labels = np.zeros((planes, ROWS, ROWS), dtype=np.uint8)
    deep, height, width = planes // 4, ROWS // STRUCTURES_HIGH, ROWS // STRUCTURES_WIDE
    z, y, x = np.ogrid[-1 : 1 : deep * 1j, -1 : 1 : height * 1j, -1 : 1 : width * 1j]
    rough = np.random.default_rng(0).normal(1.5, 0.1, (deep, height, width))
    inside = 0.3 * z**2 + y**2 + x**2 < rough
    for index, label in enumerate(sorted(paper_labels())):
        row, column = divmod(index, STRUCTURES_WIDE)
        first = index * 7 % (planes - deep + 1)
        box = labels[first : first + deep, row * height : (row + 1) * height, column * width : (column + 1) * width]
        box[inside] = label
    return labels


def hu_of(labels_zyx: NDArray[np.uint8]) -> NDArray[np.int16]:
    """A different attenuation for every structure, fat around them, and the same noise in every plane."""
    noise = np.random.default_rng(1).normal(0, 20, labels_zyx.shape[1:]).astype(np.int16)
    attenuation = np.arange(256, dtype=np.int16) - 20
    attenuation[0] = -100
    hu_zyx = attenuation[labels_zyx]
    hu_zyx += noise
    return hu_zyx


# ---- dcmqi's descriptions


def coded(code: Code | None) -> dict[str, str]:
    assert code is not None
    return {"CodeValue": code.value, "CodingSchemeDesignator": code.scheme, "CodeMeaning": code.meaning}


def segments() -> dict[str, Any]:
    """The description for itkimage2segimage: all segments in one image."""
    described = []
    for label, name in sorted(paper_labels().items()):
        known = structure(name)
        attributes: dict[str, Any] = {
            "labelID": label,
            "SegmentLabel": name,
            "SegmentDescription": known.title,
            "SegmentAlgorithmType": "AUTOMATIC",
            "SegmentAlgorithmName": MODEL.name,
            "SegmentedPropertyCategoryCodeSequence": coded(known.category),
            "SegmentedPropertyTypeCodeSequence": coded(known.type),
            "recommendedDisplayRGBValue": list(known.rgb),
        }
        if known.type_modifier is not None:
            attributes["SegmentedPropertyTypeModifierCodeSequence"] = coded(known.type_modifier)
        described.append(attributes)
    return {
        "ContentCreatorName": "Benchmark",
        "SeriesDescription": "Segmentation",
        "SeriesNumber": "300",
        "InstanceNumber": "1",
        "segmentAttributes": [described],
    }


def report(measurements: Measurements, series: Dataset) -> dict[str, Any]:
    """The description for tid1500writer: the six values of every structure."""
    groups = []
    for number, measured in enumerate(measurements.structures, start=1):
        known = structure(measured.name)
        group = {
            "TrackingIdentifier": measured.name,
            "ReferencedSegment": number,
            "SourceSeriesForImageSegmentation": str(series.SeriesInstanceUID),
            "segmentationSOPInstanceUID": SEG_INSTANCE,
            "Finding": coded(known.type),
            "measurementItems": list(items(measured)),
        }
        groups.append(group)
    return {
        "SeriesDescription": "Measurements",
        "SeriesNumber": "301",
        "InstanceNumber": "1",
        "compositeContext": ["ct_0000.dcm"],
        "imageLibrary": [],
        "observerContext": {"ObserverType": "DEVICE", "DeviceObserverName": "Benchmark", "DeviceObserverUID": "1.2.9"},
        "VerificationFlag": "UNVERIFIED",
        "CompletionFlag": "COMPLETE",
        "activitySession": "1",
        "timePoint": "1",
        "Measurements": groups,
    }


def items(measured: StructureMeasurement) -> Sequence[dict[str, Any]]:
    volume = {"CodeValue": "118565006", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Volume"}
    attenuation = {"CodeValue": "112031", "CodingSchemeDesignator": "DCM", "CodeMeaning": "Attenuation Coefficient"}
    milliliter = {"CodeValue": "ml", "CodingSchemeDesignator": "UCUM", "CodeMeaning": "Milliliter"}
    hounsfield = {"CodeValue": "[hnsf'U]", "CodingSchemeDesignator": "UCUM", "CodeMeaning": "Hounsfield unit"}
    derived = [
        ("373098007", "Mean", measured.mean_hu),
        ("386136009", "Standard Deviation", measured.sd_hu),
        ("255605001", "Minimum", measured.min_hu),
        ("56851009", "Maximum", measured.max_hu),
        ("373099004", "Median", measured.median_hu),
    ]
    return [
        {"value": f"{measured.volume_ml:.8g}", "quantity": volume, "units": milliliter},
        *(
            {
                "value": f"{value:.8g}",
                "quantity": attenuation,
                "units": hounsfield,
                "derivationModifier": {"CodeValue": code, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning},
            }
            for code, meaning, value in derived
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--planes", type=int, default=400)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    labels_zyx = labels_of(arguments.planes)
    hu_zyx = hu_of(labels_zyx)
    write_ct_series(
        Volume(hu_zyx, grid_of(arguments.planes)), folder / "ct", SyntheticPatient(seed=1, age_years=60, sex="F")
    )
    np.save(folder / "labels.npy", labels_zyx)
    np.save(folder / "hu.npy", hu_zyx)
    image = sitk.GetImageFromArray(labels_zyx)
    image.SetSpacing(SPACING_ZYX_MM[::-1])
    sitk.WriteImage(image, folder / "labels.nrrd", useCompression=False)
    case = Case.read(folder)
    (folder / "segments.json").write_text(json.dumps(segments()))
    (folder / "report.json").write_text(json.dumps(report(case.measurements, case.reconstruction.headers[0])))


if __name__ == "__main__":
    main()
