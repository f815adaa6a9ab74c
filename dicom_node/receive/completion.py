"""Is the series whole? A pure function of evidence: no clock, no database, nothing but its arguments.

No DICOM sender says when a series is complete, so the wait depends on what the evidence is worth: as many instances as
the sender's own index counts; or slices that stand regular and without gap after the associations that brought them
have ended, and of which none was refused; or nothing better than silence. A hard limit ends every wait. Late instances
are no error: they open a new revision.
"""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from dicom_node.types import Completion

if TYPE_CHECKING:
    from datetime import datetime

    from dicom_node.settings import CompletionSettings
    from dicom_node.types import SeriesEvidence

_SPACING_TOLERANCE = 0.01
"""Fraction of the spacing, as in ``reconstruct/geometry.py``: a series that has a gap is not complete by evidence."""


def decide(evidence: SeriesEvidence, now: datetime, policy: CompletionSettings) -> Completion:
    """The verdict at ``now``; ``look_again_at`` is when it may change if nothing else arrives."""
    quiet_s, what_is_known = _wait(evidence, policy)
    hard_end = evidence.first_arrival + timedelta(seconds=policy.hard_limit_s)
    if now >= hard_end:
        return Completion(
            complete=True, reason=f"{what_is_known}; hard limit of {policy.hard_limit_s:g} s after the first instance"
        )
    quiet_end = evidence.last_arrival + timedelta(seconds=quiet_s)
    if now >= quiet_end:
        return Completion(complete=True, reason=f"{what_is_known}; no new instance for {quiet_s:g} s")
    return Completion(
        complete=False,
        reason=f"{what_is_known}; waiting for {quiet_s:g} s without a new instance",
        look_again_at=min(quiet_end, hard_end),
    )


def _wait(evidence: SeriesEvidence, policy: CompletionSettings) -> tuple[float, str]:
    """How many seconds without an arrival are enough, and what is known."""
    count, expected = evidence.instance_count, evidence.expected_count
    refused = f", {evidence.refused_instances} refused" if evidence.refused_instances else ""
    if expected is not None:
        known = f"{count} of {expected} instances reported by the sender{refused}"
        return (policy.count_reached_quiet_s if count >= expected else policy.otherwise_quiet_s), known
    doubt = _doubt(evidence)
    if doubt is not None:
        return policy.otherwise_quiet_s, f"{count} instances{refused}{doubt}"
    if evidence.multi_frame:
        return policy.regular_quiet_s, f"{count} multi-frame instances, association released"
    return policy.regular_quiet_s, f"{count} evenly spaced instances, association released"


def _doubt(evidence: SeriesEvidence) -> str | None:
    """Why more may come, whatever the slices look like, or what their places say against them; None: nothing does."""
    if evidence.open_associations:
        return f", {evidence.open_associations} associations still open"
    if evidence.aborted_associations:  # a stack that was cut off is regular too
        return f", {evidence.aborted_associations} associations aborted"
    if evidence.refused_instances:  # and so is one whose end met a full disk
        return ""
    irregular = None if evidence.multi_frame else _irregularity(evidence)
    return None if irregular is None else f", {irregular}"


def _irregularity(evidence: SeriesEvidence) -> str | None:
    """Why the slices are not one regular, gap-free stack; None if they are."""
    positions = sorted(position for position in evidence.positions_mm if position is not None)
    unplaced = len(evidence.positions_mm) - len(positions)
    if unplaced:
        return f"{unplaced} without a position"
    if evidence.orientations != 1:
        return f"{evidence.orientations} orientations"
    if len(positions) < 2:  # noqa: PLR2004 - a spacing needs two slices
        return "too few slices to determine a spacing"
    gaps = [b - a for a, b in pairwise(positions)]
    spacing = median(gaps)
    smallest, largest = min(gaps), max(gaps)
    if smallest <= _SPACING_TOLERANCE * spacing:
        return "several slices at one position"
    if max(spacing - smallest, largest - spacing) > _SPACING_TOLERANCE * spacing:
        return f"slice spacing from {smallest:.3f} to {largest:.3f} mm"
    return None
