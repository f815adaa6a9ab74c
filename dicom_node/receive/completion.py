"""Is the series whole? A pure function of evidence: no clock, no database, nothing but its arguments.

No DICOM sender says when a series is complete, so the wait depends on what the evidence is worth: as many instances as
the sender's own index counts; or slices that are regular and without gap after the associations that brought them
have ended, and of which none was refused; or nothing better than silence. A hard limit ends every wait. Late instances
are no error: they open a new revision.

A scanner that sends while it reconstructs sends regular parts, each in an association of its own. A stack that the last
association continued at one end is therefore not taken as whole by its regularity. Before the second part has come,
nothing distinguishes the first from a whole series: work on it begins, but its results are held back for a while
(``deliver_from``). A sender's pauses are remembered; they lengthen its waits and never shorten them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from dicom_node.types import Completion

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from dicom_node.settings import CompletionSettings
    from dicom_node.types import SeriesEvidence, Stretch

_SPACING_TOLERANCE, _ROUNDED_MM, _MOST_ROUNDED = 0.01, 0.1, 0.3
"""A gap may differ from the others by 1 % or by what positions rounded to 0.1 mm explain, but by no more than 30 %."""
_FLOAT_ERROR_MM = 1e-6
_LEARNED_MARGIN = 1.5
"""A sender that once paused for so long may pause a little longer the next time."""
_HELD_BACK = 3
"""Times the quiet time of regular series: until then a second part would show that the first was not the whole."""


@dataclass(frozen=True, slots=True)
class _Wait:
    """How many seconds without an arrival are enough, what is known, and how many more results are held back for."""

    quiet_s: float
    known: str
    is_counted: bool = False
    held_s: float = 0.0


def decide(evidence: SeriesEvidence, now: datetime, policy: CompletionSettings) -> Completion:
    """The verdict at ``now``; ``look_again_at`` is when it may change if nothing else arrives."""
    wait = _wait(evidence, policy)
    hard_end = evidence.first_arrival + timedelta(seconds=policy.hard_limit_s)
    quiet_end = evidence.last_arrival + timedelta(seconds=wait.quiet_s)
    longest_pause_s = max(_pauses_s(evidence.stretches), default=0.0)
    if now >= quiet_end:
        return Completion(
            complete=True,
            reason=f"{wait.known}; no new instance for {wait.quiet_s:g} s",
            deliver_from=evidence.last_arrival + timedelta(seconds=wait.held_s) if wait.held_s else None,
            longest_pause_s=longest_pause_s,
        )
    if now >= hard_end:
        return Completion(
            complete=True,
            reason=f"{wait.known}; hard limit of {policy.hard_limit_s:g} s after the first instance",
            is_cut_short=not wait.is_counted,
            longest_pause_s=longest_pause_s,
        )
    return Completion(
        complete=False,
        reason=f"{wait.known}; waiting for {wait.quiet_s:g} s without a new instance",
        look_again_at=min(quiet_end, hard_end),
    )


def _wait(evidence: SeriesEvidence, policy: CompletionSettings) -> _Wait:
    count, expected = evidence.instance_count, evidence.expected_count
    # a doubt never makes a wait shorter, whatever is configured
    longest_s = max(policy.otherwise_quiet_s, policy.regular_quiet_s)
    refused = f", {evidence.refused_instances} refused" if evidence.refused_instances else ""
    if expected is not None:
        known = f"{count} of {expected} instances reported by the sender{refused}"
        if count >= expected:
            return _Wait(policy.count_reached_quiet_s, known, is_counted=True)
        return _Wait(longest_s, known)
    doubt = _doubt(evidence)
    if doubt is not None:
        return _Wait(longest_s, f"{_instances(count)}{refused}{doubt}")
    known = f"{_instances(count, 'multi-frame ' if evidence.multi_frame else 'evenly spaced ')}, association released"
    learned_s = min(_LEARNED_MARGIN * evidence.learned_pause_s, longest_s)
    if learned_s > policy.regular_quiet_s:
        known = f"{known}, sender known to continue a series after {evidence.learned_pause_s:.0f} s"
        return _Wait(learned_s, known)
    return _Wait(policy.regular_quiet_s, known, held_s=min(_HELD_BACK * policy.regular_quiet_s, longest_s))


def _instances(count: int, kind: str = "") -> str:
    return f"{count} {kind}{'instance' if count == 1 else 'instances'}"


def _doubt(evidence: SeriesEvidence) -> str | None:
    """Why more may come, whatever the slices look like, or what their places say against them; None: nothing does."""
    if evidence.open_associations:
        return f", associations still open: {evidence.open_associations}"
    if evidence.aborted_associations:  # a stack that was cut off is regular too
        return f", associations aborted: {evidence.aborted_associations}"
    if evidence.refused_instances:  # and so is one whose end met a full disk
        return ""
    irregular = None if evidence.multi_frame else _irregularity(evidence) or _growth(evidence)
    return None if irregular is None else f", {irregular}"


def _growth(evidence: SeriesEvidence) -> str | None:
    """Whether the last association continued the stack at one end, so that another may do so too."""
    if not evidence.stretches or not _continues(evidence.stretches[:-1], evidence.stretches[-1]):
        return None
    return f"the last of {len(evidence.stretches)} associations continued the stack at one end"


def _pauses_s(stretches: Sequence[Stretch]) -> list[float]:
    """Between an association that continued the stack and the end of what came before it."""
    return [
        (stretch.opened_at - max(each.closed_at for each in stretches[:index])).total_seconds()
        for index, stretch in enumerate(stretches)
        if _continues(stretches[:index], stretch)
    ]


def _continues(before: Sequence[Stretch], stretch: Stretch) -> bool:
    """Whether ``stretch`` was sent after all of ``before`` and lies wholly above or below them."""
    if not before or stretch.opened_at < max(each.closed_at for each in before):
        return False
    is_above = stretch.lowest_mm > max(each.highest_mm for each in before)
    return is_above or stretch.highest_mm < min(each.lowest_mm for each in before)


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
    allowed = min(max(_SPACING_TOLERANCE * spacing, _ROUNDED_MM), _MOST_ROUNDED * spacing) + _FLOAT_ERROR_MM
    if max(spacing - smallest, largest - spacing) > allowed:
        return f"slice spacing from {smallest:.3f} to {largest:.3f} mm"
    return None
