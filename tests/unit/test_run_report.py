"""The run report: merged over several runs, and as JSON."""

import json

from hypothesis import given
from hypothesis import strategies as st

from inference.types import RunNote, RunReport

words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
reports = st.builds(
    RunReport,
    words,
    words,
    words,
    st.lists(st.builds(RunNote, words, st.booleans()), max_size=3).map(tuple),
    st.dictionaries(words, st.floats(0, 1e6), max_size=3),
)


@given(reports)
def test_report_is_restored_from_json(report):
    assert RunReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_merged_report_names_each_item_once_and_adds_the_seconds():
    note = RunNote("fell back", changes_answer=True)
    first = RunReport("OpenVINO 1, torch 2", "CPU", "float32", (note,), {"inference": 1.0, "crop": 2.0})
    second = RunReport("torch 2", "CPU", "bfloat16", (note,), {"inference": 0.5})
    assert RunReport.of_several([first, second]) == RunReport(
        "OpenVINO 1, torch 2", "CPU", "float32, bfloat16", (note,), {"inference": 1.5, "crop": 2.0}
    )
    assert RunReport.of_several([first]) == first
