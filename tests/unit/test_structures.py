"""The anatomy catalogue against the DICOM standard's own dictionary, as far as it contains the codes."""

import pytest
from pydicom.sr._concepts_dict import concepts

from inference.errors import UnknownStructureError
from inference.structures import STRUCTURES, catalogue, paper_labels, structure

# codes of the catalogue that are not in DICOM's dictionary, listed so that a new typing error cannot hide among them
NOT_IN_DICOM = {
    "portal_vein_and_splenic_vein", "heart_myocardium", "autochthon_left", "autochthon_right", "iliopsoas_left",
    "iliopsoas_right", "gluteus_maximus_left", "gluteus_maximus_right", "gluteus_medius_left", "gluteus_medius_right",
    "gluteus_minimus_left", "gluteus_minimus_right", "vertebrae_S1",
    *(f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)),
}  # fmt: skip
WITHOUT_MEANING = {"structure", "of", "bone", "the", "body", "s", "region", "gland", "wall"}


def words(meaning):
    spelled = meaning.lower().replace("(body structure)", "").replace("intestine", "bowel").replace("-", " ")
    synonyms = {"splenic": "spleen", "pancreatic": "pancreas", "thyroid": "thyroid", "prostatic": "prostate",
                "aortic": "aorta", "tracheal": "trachea", "venous": "vein", "ventricular": "ventricle",
                "adipose": "fat"}  # fmt: skip
    return {synonyms.get(word, word) for word in spelled.split()} - WITHOUT_MEANING


def test_104_structures_of_the_paper_are_numbered_without_gaps():
    assert list(paper_labels()) == list(range(1, 105))
    assert sorted(s.total117_index for s in STRUCTURES if s.total117_index) == list(range(1, 118))


def test_every_structure_is_distinguishable_from_every_other():
    codes = {(s.category, s.type, s.type_modifier, s.region, s.region_modifier) for s in STRUCTURES}
    assert len({s.name for s in STRUCTURES}) == len(codes) == len(STRUCTURES)
    assert len({s.rgb for s in STRUCTURES}) == len(STRUCTURES)


def test_laterality_of_names_and_codes_agrees():
    for entry in STRUCTURES:
        said = entry.laterality or next((s for s in ("Right", "Left") if s in entry.type.meaning.title()), None)
        assert said is None or said.lower() in entry.name, entry.name
        assert said is not None or not {"left", "right"} & set(entry.name.split("_")), entry.name
        for modifier in (entry.type_modifier, entry.region_modifier):
            if modifier is not None:
                assert (modifier.meaning, modifier.value) in {("Right", "24028007"), ("Left", "7771000")}


@pytest.mark.parametrize("entry", STRUCTURES, ids=lambda entry: entry.name)
def test_codes_have_the_meaning_of_dicoms_dictionary(entry):
    meanings = {}
    for by_code in concepts["SCT"].values():
        for value, (meaning, _) in by_code.items():
            meanings.setdefault(value, []).append(meaning)
    known = meanings.get(entry.type.value)
    assert (known is None) == (entry.name in NOT_IN_DICOM)
    if known is not None:
        said = entry.type.meaning
        assert said in known or any(words(said) & words(meaning) for meaning in known), known
    assert max(len(code.meaning) for code in (entry.category, entry.type)) <= 64


def test_unknown_name_is_named():
    assert catalogue()["liver"] is structure("liver")
    with pytest.raises(UnknownStructureError, match="livre"):
        structure("livre")
