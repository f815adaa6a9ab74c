"""What a comparison is one of: that of an evaluation, with who made what where systems differ."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from dicom_node import __version__
from dicom_node.evaluate.provenance import Provenance

if TYPE_CHECKING:
    from collections.abc import Mapping


def combined(by_name: Mapping[str, Provenance], tool: str) -> Provenance:
    """One value where all systems have the same, else that of each with its name."""
    values = {}
    for field in fields(Provenance):
        said = {name: str(getattr(provenance, field.name)) for name, provenance in by_name.items()}
        is_same = len(set(said.values())) == 1 and field.name not in ("software", "model")
        values[field.name] = (
            next(iter(said.values())) if is_same else "; ".join(f"{name}: {value}" for name, value in said.items())
        )
    return Provenance(**{**values, "tool": tool})


def tool_of_differences(replicates: int, scored_by: str) -> str:
    """What compared the scores, and what had computed them."""
    return f"dicom-node compare {__version__} (paired Wilcoxon, {replicates} bootstrap draws) on scores of {scored_by}"


def tool_of_agreement(replicates: int, tolerance_mm: float) -> str:
    """What computed the agreement, and how."""
    return (
        f"dicom-node compare {__version__} (agreement without truth; structures found by one only count as 0; "
        f"tolerance {tolerance_mm:g} mm; {replicates} bootstrap draws)"
    )
