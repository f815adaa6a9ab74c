from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID

from dicom_node.encode.identity import RunIdentity, algorithm_device_uid, derived_uid
from inference.types import ModelIdentity

if TYPE_CHECKING:
    import pytest

texts = st.text(min_size=1, max_size=20)
models = st.builds(ModelIdentity, name=texts, version=texts, digest=texts, family=texts)
runs = st.builds(
    RunIdentity, texts, texts, models, st.integers(1, 1000), deviations=st.lists(texts, max_size=2).map(tuple)
)


@given(runs, texts)
def test_derived_uid_is_valid_and_repeatable(run: RunIdentity, kind: str) -> None:
    uid = run.uid(kind)
    assert UID(uid).is_valid
    assert len(uid) <= 64
    assert uid.startswith("2.25.")
    assert replace(run).uid(kind) == uid


@given(runs, texts, texts)
def test_any_change_gives_another_uid(run: RunIdentity, kind: str, change: str) -> None:
    model = run.model
    others = [
        replace(run, source_series_uid=run.source_series_uid + change),
        replace(run, content_digest=run.content_digest + change),
        replace(run, revision=run.revision + 1),
        replace(run, deviations=(*run.deviations, change)),
        replace(run, model=replace(model, name=model.name + change)),
        replace(run, model=replace(model, version=model.version + change)),
        replace(run, model=replace(model, digest=model.digest + change)),
    ]
    uids = [run.uid(kind), run.uid(kind + change), *(other.uid(kind) for other in others)]
    assert len(set(uids)) == len(uids)


@given(st.lists(texts, min_size=1, max_size=4), st.data())
def test_boundaries_between_parts_count(parts: list[str], data: st.DataObject) -> None:
    """("a", "bc") and ("ab", "c") are different runs."""
    joined = "".join(parts)
    cut = data.draw(st.integers(0, len(joined)))
    other = [joined[:cut], joined[cut:]]
    assert (derived_uid(*parts) == derived_uid(*other)) == (parts == other)


@given(models, texts)
def test_new_model_version_is_another_device(model: ModelIdentity, change: str) -> None:
    newer = replace(model, version=model.version + change)
    assert algorithm_device_uid("2.25.1", model) != algorithm_device_uid("2.25.1", newer)
    assert algorithm_device_uid("2.25.1", model) != algorithm_device_uid("2.25.2", model)


def test_new_node_version_gives_other_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects state the version in Software Versions, so they are not identical."""
    run = RunIdentity("1.2.3", "ab", ModelIdentity("m", "1", "cd", "nnU-Net"), 1)
    before = run.uid("SEG series")
    monkeypatch.setattr("dicom_node.encode.identity.__version__", "0.1.0-after")
    assert run.uid("SEG series") != before


def test_uid_derivation_of_a_version_never_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that derived other UIDs would send every result a second time."""
    monkeypatch.setattr("dicom_node.encode.identity.__version__", "0.1.0")
    run = RunIdentity("1.2.3", "ab", ModelIdentity("m", "1", "cd", "nnU-Net"), 1)
    assert run.uid("SEG series") == "2.25.196740313404881304983980805687695071254"
