"""Numbers of data sets, taken by several processes at once, and those that are taken already."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain

import pytest

from dicom_node.dataset.numbers import FREE_NUMBERS, allocate
from dicom_node.dataset.sets import chosen_sets
from dicom_node.errors import ConfigurationError

ROUNDS = 40
PROGRAM = """
import sys
from pathlib import Path
from dicom_node.dataset.numbers import allocate
from dicom_node.dataset.sets import chosen_sets
sets = chosen_sets(("total_2mm", "total_3mm"), None, (sys.argv[1],))
for line in sys.stdin:
    print(*(each.folder for each in allocate(sets, Path(line.strip()), "source")), flush=True)
"""


def taken_at_once(folder, *structures):
    """The names that a process per structure gets for two sets, all at the same moment, in a new folder per round."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", PROGRAM, each], **pipes) for each in structures]
    try:
        for number in range(ROUNDS):
            for process in processes:
                process.stdin.write(f"{folder / str(number)}\n")
                process.stdin.flush()
            yield [process.stdout.readline().split() for process in processes]
    finally:
        for process in processes:
            process.communicate()


def test_two_processes_never_get_the_same_number(tmp_path):
    for names in taken_at_once(tmp_path, "liver", "spleen"):
        assert sorted(name[:10] for name in chain(*names)) == [f"Dataset{number}" for number in range(301, 305)]


def test_two_processes_of_one_conversion_get_the_same_numbers(tmp_path):
    for first, second in taken_at_once(tmp_path, "liver", "liver"):
        assert first == second
        assert len(set(first)) == 2


def liver(*names):
    return chosen_sets(names, None, ("liver",))


def folders(sets):
    return [each.folder for each in sets]


def test_a_conversion_that_is_repeated_gets_its_number_again(tmp_path):
    first = allocate(liver("total_3mm", "total_4mm"), tmp_path, "a")
    assert folders(first) == ["Dataset301_structures_3mm", "Dataset302_structures_4mm"]
    assert allocate(liver("total_4mm"), tmp_path, "a") == first[1:]
    assert folders(allocate(liver("total_4mm"), tmp_path, "b")) == ["Dataset303_structures_4mm"]
    assert folders(allocate(chosen_sets(("total_4mm",), None, ("spleen",)), tmp_path, "a")) == [
        "Dataset304_structures_4mm"
    ]
    assert allocate(liver("total_4mm"), tmp_path, "a") == first[1:]


def test_the_number_of_another_programs_data_set_is_not_used(tmp_path):
    (tmp_path / "Dataset301_Lung").mkdir()
    assert folders(allocate(liver("total_3mm"), tmp_path, "a")) == ["Dataset302_structures_3mm"]


def test_a_number_of_totalsegmentator_belongs_to_one_source(tmp_path):
    ribs = chosen_sets(("ribs",), "v2")
    assert folders(allocate(ribs, tmp_path, "a")) == ["Dataset295_TotalSegmentator_part5_ribs"]
    with pytest.raises(ConfigurationError, match=r"data set 295 in .* is made from 'a', expected 'b'"):
        allocate(ribs, tmp_path, "b")
    (tmp_path / "Dataset294_Lung").mkdir()
    with pytest.raises(ConfigurationError, match="Dataset294_Lung exists, but was not written by a conversion"):
        allocate(chosen_sets(("muscles",), "v2"), tmp_path, "a")


def test_it_is_said_when_no_number_is_left(tmp_path):
    for number in FREE_NUMBERS:
        (tmp_path / f"Dataset{number}_Other").mkdir()
    with pytest.raises(ConfigurationError, match="has no number left for structures_3mm: 301 to 999"):
        allocate(liver("total_3mm"), tmp_path, "a")
