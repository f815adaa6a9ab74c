"""Files of reference percentiles with chosen curves, of the model that the results of tests name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dicom_node.conformance.samples import made_up_percentiles
from dicom_node.percentiles import Curve, References
from tests.support.analysis_results import MODEL

if TYPE_CHECKING:
    from pathlib import Path


def curve(structure: str, quantity: str, sex: str, first: float, last: float, **changes: Any) -> Curve:
    """The same at every age from 60 to 90: the percentiles 3 to 97 are evenly spaced from ``first`` to ``last``."""
    ages = tuple(range(60, 91))
    values = tuple((first + number / 6 * (last - first),) * len(ages) for number in range(7))
    given: dict[str, Any] = {
        "structure": structure,
        "quantity": quantity,
        "sex": sex,
        "patients": 200,
        "ages_years": ages,
        "patients_near": tuple(range(20, 51)),
        "values": values,
    }
    return Curve(**{**given, **changes})


def references(curves: tuple[Curve, ...], **changes: Any) -> References:
    """A document with ``curves``."""
    return References(**{**dict(made_up_percentiles(curves, MODEL)), **changes})


def written(path: Path, document: References) -> Path:
    """``document`` as a file."""
    path.write_text(json.dumps(document.document()), encoding="utf-8")
    return path
