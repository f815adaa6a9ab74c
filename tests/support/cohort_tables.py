"""Tables of measurements in the shape of a cohort's data set, written without the code that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

DIGEST = "ab" * 32


def row(patient: str, structure: str = "aorta", **changes: Any) -> dict[str, Any]:
    """One structure of the only series of a patient."""
    return {
        "pseudonym": patient,
        "study": f"{patient}-study",
        "series": f"{patient}-series",
        "model": "total",
        "model_version": "1",
        "model_digest": DIGEST,
        "structure": structure,
        "volume_ml": 100.0,
        "mean_hu": 40.0,
        "truncated": False,
        "age_years": 50.0,
        "sex": "F",
        "contrast": True,
        "slice_thickness_mm": 1.0,
        "study_date": None,
        "origin": "computed",
        **changes,
    }


def written(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """The rows as a Parquet file of pandas."""
    frame = pd.DataFrame(list(rows))
    frame["truncated"] = frame["truncated"].astype("boolean")
    frame["study_date"] = pd.to_datetime(frame["study_date"]).dt.date
    frame.to_parquet(path)
    return path
