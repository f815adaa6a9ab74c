"""Every exception that leaves the room is an error of ours that shows no value, or a lack of memory."""

from __future__ import annotations

import pytest

from dicom_node.encode import run
from dicom_node.encode.sr import notice
from dicom_node.errors import EncodingError
from dicom_node.standard.part10 import file_of
from inference.measure import measure
from tests.support.analysis_results import CONTEXT, reconstruction, segmentation


def encoded():
    source = reconstruction()
    labels = segmentation(source.source.geometry, {1: "liver"})
    return run.encode(source, labels, measure(source.source, labels), CONTEXT)


def noticed():
    return run.encode_notice(reconstruction().headers, "tissue", "too few slices", CONTEXT, ("pacs",))


@pytest.fixture(params=[(run, "variants", encoded), (notice, "name_series", noticed)], ids=["results", "notice"])
def room(request):
    return request.param


def fail_with(monkeypatch, room, error):
    module, name, call = room

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(module, name, fails)
    return call


def test_error_of_a_library_is_reported_by_its_type_alone(monkeypatch, room):
    with pytest.raises(EncodingError) as refusal:
        fail_with(monkeypatch, room, ValueError("Value 'Doe^Jane' is not allowed"))()
    assert str(refusal.value).startswith("unexpected ValueError while building the ")


def test_lack_of_memory_is_passed_on_unchanged(monkeypatch, room):
    with pytest.raises(MemoryError):
        fail_with(monkeypatch, room, MemoryError())()


def test_lack_of_memory_while_writing_a_file_is_passed_on_unchanged():
    class Full:
        def get(self, _):
            return "SEG"

        def __getattr__(self, name):
            raise MemoryError

    with pytest.raises(MemoryError):
        file_of(Full())
