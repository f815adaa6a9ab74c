"""What leaves the room is an error of ours that shows no value, or too little memory, which may pass."""

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


def test_a_library_s_error_is_repeated_by_its_type_alone(monkeypatch, room):
    with pytest.raises(EncodingError) as refusal:
        fail_with(monkeypatch, room, ValueError("Value 'Doe^Jane' is not allowed"))()
    assert str(refusal.value).startswith("unexpected ValueError while building the ")


def test_too_little_memory_stays_what_it_is(monkeypatch, room):
    with pytest.raises(MemoryError):
        fail_with(monkeypatch, room, MemoryError())()


def test_so_it_does_where_a_file_is_written():
    class Full:
        def get(self, _):
            return "SEG"

        def __getattr__(self, name):
            raise MemoryError

    with pytest.raises(MemoryError):
        file_of(Full())
