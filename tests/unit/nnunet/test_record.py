"""The run report names what contributed to the labels, and counts all the time spent."""

from dataclasses import dataclass

from inference.nnunet.contract import Runtime
from inference.nnunet.record import RunRecord
from inference.types import RunNote


@dataclass
class Network:
    runtime: Runtime


@dataclass
class Part:
    networks: tuple[Network, ...]
    notes: tuple[RunNote, ...] = ()


FAST, SURE = Runtime("OpenVINO 1", "CPU", "bfloat16"), Runtime("torch 1", "CPU", "float32")
NOTE = RunNote("OpenVINO failed", changes_answer=True)


def test_discarded_attempts_are_not_named_but_their_time_is_counted():
    record = RunRecord({"prepare": 1.0})
    with record.timed("inference"):
        record.ran(Part((Network(FAST),)))
    spent = record.report().stage_seconds["inference"]
    record.begin_again()
    record.ran(Part((Network(SURE),), (NOTE,)))
    record.ran(Part((Network(SURE),), (NOTE,)))
    report = record.report()
    assert (report.backend, report.device, report.precision) == ("torch 1", "CPU", "float32")
    assert report.notes == (NOTE,)
    assert report.stage_seconds == {"prepare": 1.0, "inference": spent}
