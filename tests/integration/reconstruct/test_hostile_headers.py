"""Bytes flipped anywhere in a header: the series runs or is refused, with no other outcome in either room."""

from __future__ import annotations

import copy
import random

import pytest
from pydicom import dcmread

from dicom_node.errors import SeriesRejected
from dicom_node.reconstruct import ReconstructionLimits, reconstruct
from dicom_node.route.conditions import OPERATORS, Condition
from dicom_node.route.rules import Rule, Rules, decide, explain
from dicom_node.route.values import FACT_ALIASES, FACTS
from dicom_node.types import Series, SourceInstance

pytestmark = pytest.mark.filterwarnings("ignore")

EVERYTHING = Rules(
    tuple(
        Rule(f"{name} {operator}", (Condition(name, operator, operand, is_fact=is_fact),), refusal="never mind")
        for name, is_fact in [*((f, True) for f in (*FACTS, *FACT_ALIASES)), ("PatientName", False), ("Rows", False)]
        for operator in OPERATORS
        for operand in (("CT", 3.0) if operator in ("in", "not_in") else 3.0,)
    )
)


def flipped(content, end, generator):
    """Change a few bytes of the data set, mostly to values that break lengths and numbers."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        changed[generator.randrange(132, end)] = generator.choice([0, 0xFF, 0x5C, 0x2D, generator.randrange(256)])
    return bytes(changed)


@pytest.mark.parametrize(
    "name", ["derived/legacy_enhanced_CT_STS_008", "pydicom+pydicom/dicomdir_98892001_CT5N", "QIICR+dcmqi/ct-3slice"]
)
@pytest.mark.parametrize("seed", range(3))
def test_flipped_bytes_lead_to_a_volume_or_a_refusal(shared_data, tmp_path, name, seed):
    generator = random.Random(f"{name} {seed}")
    paths = sorted((shared_data / name).iterdir())
    whole = [SourceInstance(path, dcmread(path, stop_before_pixels=True)) for path in paths]
    content = paths[0].read_bytes()
    end = min(content.rindex(b"\xe0\x7f\x10\x00", 0, 60000), 12000)
    path = tmp_path / "flipped.dcm"
    outcomes = {"runs": 0, "refused": 0, "unreadable": 0}
    for _ in range(40):
        path.write_bytes(flipped(content, end, generator))
        try:
            header = dcmread(path, stop_before_pixels=True)
        except Exception:  # noqa: BLE001 - such a file is refused when it arrives
            outcomes["unreadable"] += 1
            continue
        series = Series("", "", (SourceInstance(path, header), *copy.copy(whole[1:])))
        assert decide(series, EVERYTHING)
        assert explain(series, EVERYTHING)
        try:
            reconstruct(series, ReconstructionLimits(maximum_voxels=10**7, minimum_planes=2))
            outcomes["runs"] += 1
        except SeriesRejected:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 0, outcomes
