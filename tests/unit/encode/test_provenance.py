from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dicom_node.encode.identity import RunIdentity
from dicom_node.encode.provenance import (
    Provenance,
    content_creator_name,
    content_label,
    intended_use,
    plain,
    series_description,
    series_number,
    statements,
)
from dicom_node.encode.source.series import prepare
from dicom_node.settings import NnunetModelSettings, load_settings
from dicom_node.types import ResultKind
from inference.models.package import read_package
from inference.types import ModelIdentity
from tests.support.analysis_results import CONTEXT, MODEL, reconstruction, with_headers


def model(name: str, intended_use: str = MODEL.intended_use) -> ModelIdentity:
    return ModelIdentity(name, "1", "ab", "nnU-Net", intended_use)


@given(st.text(min_size=1, max_size=200), st.text(min_size=1, max_size=200))
def test_texts_are_valid_for_their_vr_for_any_model_name(name: str, use: str) -> None:
    named = model(name, use)
    for text in (series_description(named, "segmentation"), content_creator_name(named)):
        assert len(text) <= 64
        assert text.isascii()
        assert "\\" not in text
        assert text.isprintable()
    assert content_creator_name(named).count("^") == 1
    assert "segmentation" in series_description(named, "segmentation")


@given(st.text(min_size=1, max_size=100))
def test_long_names_never_displace_the_intended_use(name: str) -> None:
    assert "Research use only" in series_description(model(name), "segmentation")


def test_series_description_with_a_short_name_has_the_full_intended_use() -> None:
    assert series_description(model("demo"), "measurements") == (
        "demo measurements - Research use only - not for clinical use"
    )


def test_every_intended_use_is_shown_with_research_software() -> None:
    assert "research software" in " ".join(statements(CONTEXT, model("demo", "Liver volumetry"), 40, ()))


def test_demo_model_is_called_a_demonstration_even_in_short_texts() -> None:
    root = Path(__file__).parents[3]
    for file in (root / "config" / "node.yaml", root / "deploy" / "compose" / "node.yaml"):
        settings = load_settings(file).models["phantom_demo_104"]
        assert isinstance(settings, NnunetModelSettings)
        for name in ("phantom_demo_104", "m"):
            demo = model(name, read_package(root / "config" / "models" / settings.package.name).identity.intended_use)
            assert content_label(demo) == "DEMONSTRATION"
            assert series_description(demo, "segmentation") == f"{name} segmentation - Demonstration only"


def test_content_label_is_a_code_string_of_complete_words() -> None:
    assert content_label(model("demo")) == "RESEARCH USE"
    assert content_label(model("demo", "Für Forschung")) == "FUR FORSCHUNG"
    assert content_label(model("demo", "Donaudampfschifffahrtsgesellschaft")) == "DONAUDAMPFSCHIFF"
    assert content_label(model("demo", "研究")) == "UNSPECIFIED USE"


def test_plain_text_removes_accents_and_characters_outside_ascii() -> None:
    assert plain("Röhre\\Ä\n\x1b[31m中 x", 64) == "Rohre A [31m x"


def test_statements_contain_research_use_revision_and_completeness() -> None:
    context = replace(CONTEXT, revision=2, completion_reason="hard limit, 40 of 44 images")
    said = " ".join(statements(context, MODEL, 40, ("gantry tilt of 18.0 degrees",)))
    assert said.startswith("Research use only - not for clinical use.")
    for part in ("Revision 2", "40 images", "hard limit, 40 of 44 images", "Gantry tilt", MODEL.digest):
        assert part in said


def test_run_is_dated_in_the_time_zone_of_the_study() -> None:
    def set_zone(header) -> None:
        header.TimezoneOffsetFromUTC = "-0330"

    source = prepare(with_headers(reconstruction(), set_zone))
    provenance = Provenance(RunIdentity.of("1.2", MODEL, CONTEXT), CONTEXT, source, ())
    assert provenance.started_at == CONTEXT.started_at
    assert provenance.started_at.utcoffset() == -timedelta(hours=3, minutes=30)
    assert f"{provenance.started_at:%H%M%S}" == "013607"


def test_results_sort_next_to_their_source_series() -> None:
    source = prepare(reconstruction())

    def numbers(model=MODEL, **changes) -> list[int]:
        identity = RunIdentity.of("1.2", model, CONTEXT)
        provenance = Provenance(identity, CONTEXT, replace(source, **changes), ())
        return [series_number(provenance, kind, index) for kind in ResultKind for index in range(10)]

    own, others = numbers(), numbers(replace(MODEL, name="tissue"))
    assert len({*own, *others}) == 2 * len(own)
    assert own == sorted(own) == numbers()
    assert {number // 100_000 for number in own} == {5}
    for unusable in (0, -3, 2**31, 30_000):
        assert {number // 100_000 for number in numbers(series_number=unusable)} == {90}
    assert max(numbers(series_number=21_473)) < 2**31


def test_intended_use_is_complete_or_its_first_clause() -> None:
    """Truncated in the middle, "not for clinical use" could mean the opposite."""
    use = "Demonstration only - trained on synthetic phantoms, not for clinical use"
    assert intended_use(replace(MODEL, intended_use=use)) == "Demonstration only"
    assert intended_use(replace(MODEL, intended_use=use), limit=80) == use
    assert intended_use(MODEL) == MODEL.intended_use
