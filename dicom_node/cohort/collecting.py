"""From a finished job to rows: the job's report is read back, together with the header of its images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dicom_node.cohort.reports import rows_of_report
from dicom_node.cohort.subject import facts_of_image
from dicom_node.cohort.table import Origin
from dicom_node.errors import DicomNodeError
from dicom_node.results import read_report
from dicom_node.standard.files import read_headers
from dicom_node.store.clock import now_utc
from dicom_node.store.states import JobState, PullState
from inference.types import ModelIdentity

if TYPE_CHECKING:
    from dicom_node.cohort.pseudonym import Pseudonyms
    from dicom_node.cohort.subject import Dates
    from dicom_node.cohort.table import CohortTable, StructureRow
    from dicom_node.store.cohorts import Answer, Answers, Cohorts, CohortSeries
    from dicom_node.store.spool import Spool

_UNDER_WAY = (JobState.QUEUED, JobState.RUNNING, JobState.ENCODED)
_DONE = (JobState.DELIVERED, JobState.KEPT)
_NO_REPORT = "the rule requests no report, so there is nothing to read rows from"


@dataclass(frozen=True, slots=True)
class Collecting:
    """Writes the rows of series whose jobs have ended."""

    name: str
    cohorts: Cohorts
    spool: Spool
    table: CohortTable
    pseudonyms: Pseudonyms
    dates: Dates

    def collect(self, series: CohortSeries) -> bool:
        """PULLED -> DONE, REFUSED or FAILED, after writing rows or the reason; False while a job is in progress.

        Raises:
            StoreUnavailable: spool, ledger or data set is unavailable.
        """
        if self.cohorts.is_under_way(series.series_instance_uid):
            return False
        answers = self.cohorts.answers(self.name, series.series_instance_uid, now_utc())
        if answers is None or any(answer.state in _UNDER_WAY for answer in answers.jobs):
            return False
        state, reason = _outcome(answers)
        try:
            rows = self._rows(answers)
        except DicomNodeError as error:
            state, reason, rows = PullState.FAILED, str(error), ()
        if rows:
            header = self._write(answers, rows)
            if header:
                state, reason = PullState.FAILED, header
        if not rows:
            self.explain(series, state, reason or "the model found no structure")
        self.cohorts.ended(series, state, reason, now_utc())
        return True

    def explain(self, series: CohortSeries, state: PullState, reason: str) -> None:
        """List a series without rows."""
        part = self.pseudonyms.uid(series.series_instance_uid)
        study = self.pseudonyms.uid(series.study_instance_uid)
        outcome = "empty" if state is PullState.DONE else str(state).lower()
        self.table.write_reason(part, study, part, Origin.COMPUTED, outcome, reason)

    def _write(self, answers: Answers, rows: tuple[StructureRow, ...]) -> str:
        """Write the rows; return the reason if that was not possible."""
        try:
            (first,) = read_headers([self.spool.path(answers.revision.spool_names[0])])
        except DicomNodeError as error:
            return str(error)
        facts = facts_of_image(first.header, first.path, self.pseudonyms, self.dates)
        self.table.write(facts.series, facts, rows, Origin.COMPUTED)
        return ""

    def _rows(self, answers: Answers) -> tuple[StructureRow, ...]:
        return tuple(row for answer in answers.jobs for row in self._rows_of(answer))

    def _rows_of(self, answer: Answer) -> tuple[StructureRow, ...]:
        if answer.report is None or answer.model_identity is None:
            return ()
        model = ModelIdentity(**answer.model_identity)
        return rows_of_report(read_report(self.spool.path(answer.report)), model.name, model.version, model.digest)


def _outcome(answers: Answers) -> tuple[PullState, str]:
    """The outcome of the series: if several models ran, one successful job is enough."""
    done = [answer for answer in answers.jobs if answer.state in _DONE]
    if done:
        has_report = any(answer.report is not None for answer in done)
        return (PullState.DONE, "") if has_report else (PullState.FAILED, _NO_REPORT)
    reasons = "; ".join(dict.fromkeys(answer.reason for answer in answers.jobs)) or "no job was created for the series"
    is_refused = bool(answers.jobs) and all(answer.state is JobState.REJECTED for answer in answers.jobs)
    return (PullState.REFUSED if is_refused else PullState.FAILED), reasons
