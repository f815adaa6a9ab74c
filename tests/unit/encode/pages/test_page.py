"""The report page: the content of its rows, and that nothing overlaps or is cut off."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dicom_node.encode.pages.lettering import fitted, width_in
from dicom_node.encode.pages.page import Page, _figures
from dicom_node.encode.pages.sheet import SCREEN, rounded
from dicom_node.encode.pages.table import Note, Section, blocks, sheets
from dicom_node.encode.pages.views import View, arranged
from dicom_node.encode.segments import Rank
from inference.structures import STRUCTURES
from tests.support.analysis_results import geometry, reconstruction, with_headers
from tests.unit.encode.pages.test_capture import page_of

if TYPE_CHECKING:
    from pydicom import Dataset

    from dicom_node.encode.segments import Segment

GRID = geometry((12, 24, 24))


def page_with(names: dict[int, str]) -> Page:
    return page_of(reconstruction(GRID), names=names)[0]


def rows_of(page: Page) -> dict[str, tuple[Segment | str, ...]]:
    sections = (block for block in blocks(page.segments, page.not_found) if isinstance(block, Section))
    return {row.title: row.cells for section in sections for row in section.rows}


def named(cells: tuple[Segment | str, ...]) -> list[str]:
    return [cell if isinstance(cell, str) else cell.structure.name for cell in cells]


# ---- rows


def test_pairs_share_a_row_with_the_right_side_first() -> None:
    rows = rows_of(page_with({1: "kidney_left", 2: "liver", 3: "kidney_right", 4: "rib_left_4", 5: "rib_right_4"}))
    assert {title: named(cells) for title, cells in rows.items()} == {
        "Liver": ["liver"],
        "Kidney": ["kidney_right", "kidney_left"],
        "Rib 4": ["rib_right_4", "rib_left_4"],
    }


def test_missing_side_states_whether_it_was_searched_for() -> None:
    page = page_with({1: "kidney_left", 2: "adrenal_gland_right", 3: "lung_middle_lobe_right"})
    rows = rows_of(replace(page, not_found=("kidney_right",)))
    assert named(rows["Kidney"]) == ["not found", "kidney_left"]
    assert named(rows["Adrenal gland"]) == ["adrenal_gland_right", "\u2013"]
    assert named(rows["Lung middle lobe right"]) == ["lung_middle_lobe_right"]  # there is no left side


def test_every_structure_of_the_catalogue_has_exactly_one_row() -> None:
    names = dict(enumerate((structure.name for structure in STRUCTURES), start=1))
    cells = [cell for cells in rows_of(page_with(names)).values() for cell in named(cells)]
    assert sorted(cells) == sorted(names.values())


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 20), st.integers(4, 40), st.randoms())
def test_pages_contain_every_row_once_and_no_more_than_fit(sizes, first, lines, random) -> None:
    said = [
        Section(f"s{index}", tuple(range(100 * index, 100 * index + size)), random.choice((2, 3)))  # type: ignore[arg-type]
        if random.random() < 0.7
        else Note(f"n{index}", tuple(range(100 * index, 100 * index + size)))  # type: ignore[arg-type]
        for index, size in enumerate(sizes)
    ]
    laid = sheets(said, first, lines)
    flat = [
        row for page in laid for block in page for row in (block.rows if isinstance(block, Section) else block.text)
    ]
    assert flat == [100 * index + row for index, size in enumerate(sizes) for row in range(size)]
    for number, page in enumerate(laid):
        assert sum(2 + block.lines for block in page) <= (lines if number else first)
        assert page or number == 0


@pytest.mark.parametrize(
    ("ml", "shown"), [(0.001, "< 0.1"), (0.06, "0.1"), (9.96, "10.0"), (99.4, "99.4"), (1267.4, "1,267")]
)
def test_small_volumes_are_not_rounded_to_zero(ml: float, shown: str) -> None:
    assert rounded(ml) == shown


# ---- letters and frames


@given(st.text("iIMWg. ", min_size=1, max_size=200), st.floats(0.3, 8), st.booleans())
def test_texts_fit_into_their_space(words: str, room: float, bold: bool) -> None:
    shown, points = fitted(words, 8, room, bold=bold)
    assert width_in(shown, points, bold=bold) <= room or shown == "…"
    assert shown == words or shown.endswith("…")


@settings(deadline=None)
@given(st.tuples(st.integers(1, 1500), st.integers(150, 600), st.integers(150, 600)), st.floats(3, 6))
def test_frames_are_inside_their_space_and_do_not_overlap(extent_zyx: tuple[int, int, int], height: float) -> None:
    z, y, x = extent_zyx
    shapes = ((y, x), (z, x), (z, y))
    shown = tuple(View("", np.zeros((*shape, 3), np.uint8), 1.0, ("", "", "", "")) for shape in shapes)
    frames = arranged(shown, 11.0, height)  # type: ignore[arg-type]
    for box in frames:
        assert box.width > 0.3
        assert box.height > 0.3
        assert box.x >= -1e-9
        assert box.y >= -1e-9
        assert box.x + box.width <= 11 + 1e-9
        assert box.y + box.height <= height + 1e-9
    for one, other in combinations(frames, 2):
        beside = one.x + one.width < other.x or other.x + other.width < one.x
        above = one.y + one.height < other.y or other.y + other.height < one.y
        assert beside or above


def long_words(header: Dataset) -> None:
    header.PatientName = "W" * 40 + "^" + "M" * 23
    header.PatientID = "W" * 64
    header.AccessionNumber = "W" * 16
    header.StudyDescription = "M" * 64


RANK = Rank(">97", 123_456, "", "")


@pytest.mark.parametrize(("count", "rank"), [(1, None), (104, None), (130, None), (3, RANK), (104, RANK)])
def test_no_texts_overlap_or_leave_the_page(count: int, rank: Rank | None) -> None:
    names = dict(enumerate((structure.name for structure in STRUCTURES[:count]), start=1))
    labels = np.zeros(GRID.shape_zyx, np.uint8)
    labels[5:7, 2:22, 2:22].flat[: 6 * count : 6] = sorted(names)
    page = page_of(with_headers(reconstruction(GRID), long_words), labels, names)[0]
    model = replace(page.provenance.model, name="M" * 64, version="W" * 64, intended_use="W" * 64)
    page = replace(page, provenance=replace(page.provenance, identity=replace(page.provenance.identity, model=model)))
    assert len(page.segments) == count
    if rank:
        ranked = tuple(replace(segment, volume_rank=rank, mean_hu_rank=rank) for segment in page.segments)
        page = replace(page, segments=ranked, on_percentiles="M" * 190 + " " + "long word " * 40)
    for number, figure in enumerate(_figures(page, SCREEN), start=1):
        said = " ".join(text.get_text() for text in figure.texts)
        assert f"ID {'W' * 64}    Born 1950-02-03    Sex F" in said
        assert f"Page {number} of " in said
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [(text.get_window_extent(renderer).padded(-1.5), text.get_text()) for text in figure.texts]
        for box, words in boxes:
            assert box.x0 >= 0, words
            assert box.y0 >= 0, words
            assert box.x1 <= figure.bbox.x1, words
            assert box.y1 <= figure.bbox.y1, words
        for (one, words), (other, others) in combinations(boxes, 2):
            assert not one.overlaps(other), (words, others)
