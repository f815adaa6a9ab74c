"""Captures, documents and notices as other programs read them: dciodvfy, DCMTK, pydicom, a PDF reader."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pypdf
import pytest
import SimpleITK as sitk  # noqa: N813 - its own habit
from pydicom import dcmread

from dicom_node.encode.pages.capture import capture_files
from dicom_node.encode.pages.document import document_file
from dicom_node.encode.sr.notice import notice_file
from inference.structures import STRUCTURES
from tests.support.analysis_results import CONTEXT, GRIDS, geometry, reconstruction
from tests.unit.encode.pages.test_capture import page_of

if TYPE_CHECKING:
    from pathlib import Path

STANDARD_EXTENDED = ("Device UID", "Slice Thickness", "Image Position", "Image Orientation", "Frame of Reference UID")


def output(*command: str | Path) -> str:
    program = shutil.which(str(command[0]))
    assert program, f"{command[0]} is not installed"
    done = subprocess.run(
        [program, *map(str, command[1:])], capture_output=True, text=True, errors="replace", check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def assert_no_error(path: Path) -> None:
    report = output("dciodvfy", path)
    assert "Error" not in report, report
    for line in report.splitlines():
        known = (*STANDARD_EXTENDED, "Position Reference Indicator", "Standard Extended SOP Class")
        assert "Warning" not in line or any(words in line for words in known), line


@pytest.mark.parametrize("name", ["axial", "prone", "oblique", "multi-frame, tilted"])
def test_dciodvfy_finds_no_error_and_dcmtk_shows_the_pixels(name: str, tmp_path: Path) -> None:
    grid, multi_frame = GRIDS[name]
    source = reconstruction(grid, multi_frame=multi_frame)
    page, labels = page_of(source)
    files = capture_files(page, source, labels)
    assert len({dcmread(write(tmp_path, content)).SeriesNumber for content in files}) == 3
    for content in (files[0], files[1], files[-1]):
        path = write(tmp_path, content)
        assert_no_error(path)
        picture = tmp_path / "picture.ppm"
        output("dcm2pnm", "+op", path, picture)
        shown = picture.read_bytes()
        pixels = dcmread(path).pixel_array
        assert shown.endswith(pixels.tobytes())
        assert_simpleitk_reads(path)


def assert_simpleitk_reads(path: Path) -> None:
    """SimpleITK reads the same pixels as pydicom, at the position stated in the image; a page states none."""
    dataset, image = dcmread(path), sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image)[0], dataset.pixel_array)
    if "ImagePositionPatient" in dataset:
        assert image.GetOrigin() == pytest.approx(tuple(dataset.ImagePositionPatient), abs=1e-6)
        assert image.GetSpacing()[:2] == pytest.approx(tuple(dataset.PixelSpacing)[::-1])
        directions = np.array(image.GetDirection()).reshape(3, 3)
        assert directions[:, :2].T.ravel() == pytest.approx(tuple(dataset.ImageOrientationPatient), abs=1e-6)


def test_the_document_holds_every_number_as_text(tmp_path: Path) -> None:
    names = {label: structure.name for label, structure in enumerate(STRUCTURES[:120], start=1)}
    grid = geometry((12, 24, 24))
    labels = np.zeros(grid.shape_zyx, dtype=np.uint8)
    labels[5, 2:22, 2:22].flat[:110] = np.arange(1, 111)
    page, _ = page_of(reconstruction(grid), labels, names)
    path = write(tmp_path, document_file(page))
    assert_no_error(path)
    dataset = dcmread(path)
    document = tmp_path / "page.pdf"
    document.write_bytes(dataset.EncapsulatedDocument[: dataset.EncapsulatedDocumentLength])
    reader = pypdf.PdfReader(document)
    text = "\n".join(each.extract_text() for each in reader.pages)
    assert len(reader.pages) >= 2
    assert len(page.segments) == 110
    assert len(page.not_found) == 10
    for segment in page.segments:
        title = segment.structure.title
        assert title in text or re.sub(" (left|right)", "", title) in text
        assert f"{segment.measurement.mean_hu:.0f} ± {segment.measurement.sd_hu:.0f}" in text
    words = " ".join(text.split())
    for name in page.not_found:
        assert name.replace("_", " ") in words
    for said in ("Müller, Jürgen", "P-4711", "1950-02-03", "Research use only", page.provenance.model.digest):
        assert said in words


def test_dciodvfy_and_dsrdump_read_the_notice(tmp_path: Path) -> None:
    reason = "gantry tilt of 12 degrees"
    path = write(tmp_path, notice_file(reconstruction().headers, "phantom-demo", reason, CONTEXT))
    assert_no_error(path)
    assert f"Not processed: {reason}." in output("dsrdump", "+Pl", path)


def write(folder: Path, content: memoryview) -> Path:
    path = folder / "result.dcm"
    path.write_bytes(content)
    return path
