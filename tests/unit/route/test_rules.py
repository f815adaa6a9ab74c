"""Which rule decides and why, and the errors of an invalid rules file."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from dicom_node.errors import ConfigurationError
from dicom_node.route.conditions import OPERATORS, Condition
from dicom_node.route.requests import NOTICE_ALONE, OPTIONS
from dicom_node.route.rules import Rules, decide, explain
from dicom_node.route.rules_file import load_rules
from dicom_node.route.values import FACT_ALIASES, FACTS
from dicom_node.settings import DestinationSettings, NnunetModelSettings, Settings, TissueModelSettings
from dicom_node.types import ResultRequest, SegmentationForm, Series, SourceInstance
from tests.support.reference_percentiles import curve, references, written

ROOT = Path(__file__).resolve().parents[3]
PEER = DestinationSettings(host="127.0.0.1", port=104, ae_title="PACS")
SETTINGS = Settings(
    models={
        "tissue": TissueModelSettings(kind="tissue"),
        "phantom_demo_104": NnunetModelSettings(kind="nnunet", package=Path("m")),
    },
    destinations={"pacs": PEER, "research": PEER},
)


def header(k=0, **attributes):
    ds = Dataset()
    defaults = {
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ConvolutionKernel": "Br40d",
        "BodyPartExamined": "CHEST",
        "PatientName": "Smith^John",
        "PatientID": "4711",
        "KVP": "120",
        "ImagePositionPatient": [0, 0, 2.5 * k],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.75, 0.8],
    }
    for keyword, value in (defaults | attributes).items():
        if value is not None:
            setattr(ds, keyword, value)
    return ds


def series(*headers, count=4, ae="CT1", **attributes):
    headers = headers or [header(k, **attributes) for k in range(count)]
    return Series("1.2", "1.3", tuple(SourceInstance(Path("x"), h) for h in headers), sending_ae=ae)


def load(tmp_path, text, settings=SETTINGS):
    file = tmp_path / "rules.yaml"
    file.write_text(text, encoding="utf-8")
    return load_rules(file, settings)


def rule_with(tmp_path, condition):
    return load(tmp_path, f"rules:\n  - {{name: r, model: tissue, when: [{condition}]}}\n")


def holds(tmp_path, condition, a_series):
    return decide(a_series, rule_with(tmp_path, condition))[0].model == "tissue"


HOLDS = [
    "{attribute: Modality, equals: CT}",
    "{attribute: Modality, equals: ct}",
    "{attribute: Modality, not_equals: MR}",
    "{attribute: Modality, in: [CT, MR]}",
    "{attribute: BodyPartExamined, not_in: [HEAD, NECK]}",
    "{attribute: BodyPartExamined, matches: '^(chest|thorax)$'}",
    "{attribute: ConvolutionKernel, not_matches: '^Br6'}",
    "{attribute: ConvolutionKernel, contains: br4}",
    "{attribute: ImageType, contains: AXIAL}",
    "{attribute: ImageType, not_contains: DERIVED}",
    "{attribute: ImageType, equals: [ORIGINAL, PRIMARY, AXIAL]}",
    r"{attribute: ImageType, equals: ORIGINAL\PRIMARY\AXIAL}",
    "{attribute: KVP, equals: 120}",
    "{attribute: KVP, at_least: 120}",
    "{attribute: KVP, at_most: 120.0}",
    "{attribute: KVP, greater_than: 119.9}",
    "{attribute: KVP, less_than: 121}",
    "{attribute: KVP, in: [100, 120]}",
    "{attribute: KVP, exists: true}",
    "{attribute: PatientName, matches: smith}",
    "{fact: slice_count, equals: 4}",
    "{fact: spacing_mm, equals: 2.5}",
    "{fact: extent_mm, equals: 10}",
    "{fact: pixel_spacing_mm, equals: 0.8}",
    "{fact: orientation, equals: axial}",
    "{fact: kernel, equals: Br40d}",
    "{fact: body_part, equals: CHEST}",
    "{fact: image_type, contains: ORIGINAL}",
    "{fact: sending_ae, in: [CT1, CT2]}",
]
FAILS = [
    "{attribute: Modality, equals: MR}",
    "{attribute: KVP, greater_than: 120}",
    "{attribute: KVP, less_than: 120}",
    "{attribute: Modality, at_least: 3}",
    "{attribute: ImageType, equals: ORIGINAL}",
    "{attribute: ImageType, contains: DERIVED}",
    "{attribute: ContrastBolusAgent, exists: true}",
    "{attribute: ContrastBolusAgent, not_equals: Iohexol}",
    "{fact: slice_count, at_least: 5}",
    "{fact: orientation, not_equals: axial}",
]


@pytest.mark.parametrize("condition", HOLDS)
def test_conditions_that_hold(tmp_path, condition):
    assert holds(tmp_path, condition, series())


@pytest.mark.parametrize("condition", FAILS)
def test_conditions_that_do_not_hold(tmp_path, condition):
    assert not holds(tmp_path, condition, series())


operands = {
    **{name: st.sampled_from(["CT", "x", 3.0]) for name in OPERATORS},
    **dict.fromkeys(("at_least", "at_most", "greater_than", "less_than"), st.floats(-5, 5)),
    "in": st.just(("CT", 3.0)),
    "not_in": st.just(("CT", 3.0)),
}


@given(
    st.sampled_from(list(OPERATORS)).flatmap(lambda name: st.tuples(st.just(name), operands[name])),
    st.sampled_from(["KVP", "SeriesDescription", "PatientID", "kernel", "spacing_mm", "orientation", "sending_ae"]),
    st.booleans(),
    st.sampled_from([None, "", [], "  "]),
    st.integers(0, 3),
)
def test_missing_values_never_match(operator, name, any_instance, value, count):
    """With no operator, negated or not, for all or any instances, for attributes and facts, absent or empty."""
    keyword = FACT_ALIASES.get(name, name)
    empty = {"KVP": None, "ConvolutionKernel": None, "PatientID": None, "ImagePositionPatient": None}
    empty |= {"ImageOrientationPatient": None}
    if keyword not in FACTS and not (keyword == "KVP" and value == "  "):
        empty[keyword] = value
    bare = series(*[header(**empty) for _ in range(count)], ae="")
    if not bare.instances or count == 0:
        bare = Series("1.2", "1.3", ())
    condition = Condition(name, *operator, is_fact=name in FACTS or name in FACT_ALIASES, any_instance=any_instance)
    outcome = condition.look_at(bare)
    assert not outcome.held
    assert "missing" in outcome.seen


def test_condition_must_hold_for_every_instance_unless_any_suffices(tmp_path):
    mixed = series(*[header(k, KVP="80" if k == 2 else "120") for k in range(4)])
    assert not holds(tmp_path, "{attribute: KVP, equals: 120}", mixed)
    assert holds(tmp_path, "{attribute: KVP, equals: 80, of: any}", mixed)
    partly = series(*[header(k, KVP=None if k == 2 else "120") for k in range(4)])
    assert not holds(tmp_path, "{attribute: KVP, equals: 120}", partly)
    assert not holds(tmp_path, "{attribute: KVP, not_equals: 80}", partly)
    assert holds(tmp_path, "{attribute: KVP, equals: 120, of: any}", partly)


TWO_MODELS = """
rules:
  - {name: first, model: tissue, destinations: [pacs], priority: 5, when: [{attribute: Modality, equals: CT}]}
  - {name: second, model: phantom_demo_104, destinations: [pacs, research], unchecked_hu: true, when: []}
  - {name: shadowed, model: tissue, destinations: [research], when: []}
"""


def test_each_model_gets_one_job_by_its_first_matching_rule(tmp_path):
    decisions = decide(series(), load(tmp_path, TWO_MODELS))
    assert [(d.rule, d.model, d.destinations, d.priority) for d in decisions] == [
        ("first", "tissue", ("pacs",), 5),
        ("second", "phantom_demo_104", ("pacs", "research"), 0),
    ]
    assert decisions[0].reason == "rule 'first' matched"
    assert [d.unchecked_hu for d in decisions] == [False, True]


REFUSING = """
rules:
  - {name: perfusion, refuse: no HU in perfusion maps, when: [{fact: image_type, contains: PERFUSION, of: any}]}
  - {name: every, model: tissue, when: []}
"""


def test_refusing_rule_ends_the_search(tmp_path):
    rules = load(tmp_path, REFUSING)
    assert decide(series(), rules)[0].model == "tissue"
    (decision,) = decide(series(ImageType=["DERIVED", "PRIMARY", "PERFUSION"]), rules)
    assert decision.model is None
    assert decision.reason == "rule 'perfusion' refuses: no HU in perfusion maps"
    assert list(decision.outcomes) == ["perfusion"]
    assert decision.requests == {}


def test_refusing_rule_may_ask_for_a_notice_and_the_last_rule_for_unmatched_series(tmp_path):
    every = "{name: every, model: tissue, when: [{attribute: Modality, equals: CT}]}"
    none = "{name: none, refuse: no model is meant for it, destinations: [{to: pacs, notice: true}], when: []}"
    rules = load(tmp_path, f"rules: [{every}, {none}]")
    (decision,) = decide(series(Modality="MR"), rules)
    assert decision.refusal == "no model is meant for it"
    assert decision.requests == {"pacs": NOTICE_ALONE}
    assert [decision.model for decision in decide(series(), rules)] == ["tissue"]


def test_unmatched_series_states_its_values(tmp_path):
    rules = load(
        tmp_path,
        """
rules:
  - name: thin
    model: tissue
    when: [{attribute: Modality, equals: CT}, {fact: spacing_mm, at_most: 1.5}]
  - name: head
    model: tissue
    when: [{fact: body_part, equals: HEAD}, {attribute: SeriesDescription, not_contains: bone}]
""",
    )
    (decision,) = decide(series(), rules)
    assert (decision.rule, decision.model) == (None, None)
    assert decision.reason == (
        "no rule matched; thin: spacing_mm at most 1.5 (found: 2.5); head: body_part equals HEAD (found: CHEST)"
    )
    rows = [(row.rule, row.condition, row.seen, row.held) for row in explain(series(), rules)]
    assert rows == [
        ("thin", "Modality equals CT", "CT", True),
        ("thin", "spacing_mm at most 1.5", "2.5", False),
        ("head", "body_part equals HEAD", "CHEST", False),
        ("head", "SeriesDescription not contains bone", "missing", False),
    ]


def test_without_rules_the_reason_says_so(tmp_path):
    (decision,) = decide(series(), load(tmp_path, "rules: []"))
    assert decision.reason == "no rules are configured"
    assert decide(series(), Rules(())) == (decision,)


@pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "AccessionNumber", "ReferringPhysicianName"])
@pytest.mark.parametrize("operator", ["equals", "contains", "matches", "not_equals"])
def test_identities_are_never_shown(tmp_path, keyword, operator):
    value = "Smith^John4711"
    rules = rule_with(tmp_path, f"{{attribute: {keyword}, {operator}: '{value}x'}}")
    for candidate in (series(**{keyword: value}), series(**{keyword: value + "x"})):
        decisions = decide(candidate, rules)
        told = json.dumps([asdict(d) for d in decisions] + [asdict(row) for row in explain(candidate, rules)])
        told += "".join(d.reason for d in decisions)
        assert "Smith" not in told
        assert "4711" not in told
        assert ("not matched" in told) == (decisions[0].model is None)


def test_received_values_are_shown_on_one_short_line(tmp_path):
    rules = rule_with(tmp_path, "{attribute: SeriesDescription, equals: x}")
    (row,) = explain(series(SeriesDescription="a\r\n\x1b[31m" + "b" * 500), rules)
    assert row.seen.startswith("a???[31mbbb")
    assert len(row.seen) < 100


def test_several_values_are_counted(tmp_path):
    mixed = series(*[header(k, KVP="80" if k == 2 else "120") for k in range(4)])
    (row,) = explain(mixed, rule_with(tmp_path, "{attribute: KVP, equals: 120}"))
    assert row.seen == "80 (in 1 of 4)"


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        ([1, 0, 0, 0, 1, 0], "axial"),
        ([1, 0, 0, 0, 0.866, -0.5], "axial"),  # a gantry tilted by 30 degrees
        ([1, 0, 0, 0, 0, -1], "coronal"),
        ([0, 1, 0, 0, 0, -1], "sagittal"),
        ([1, 0, 0, 0, 0.7071, -0.7071], "oblique"),
    ],
)
def test_orientation_fact(tmp_path, orientation, expected):
    assert holds(tmp_path, f"{{fact: orientation, equals: {expected}}}", series(ImageOrientationPatient=orientation))


def test_undeterminable_facts_are_missing(tmp_path):
    two = series(header(0), header(1, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]))
    for fact in ("orientation", "spacing_mm", "extent_mm"):
        (row,) = explain(two, rule_with(tmp_path, f"{{fact: {fact}, exists: true}}"))
        assert (row.held, row.seen) == (False, "missing")


@pytest.mark.filterwarnings("ignore")
def test_invalid_headers_give_missing_values_and_never_an_error(tmp_path):
    broken = header(0)
    for keyword in ("ImagePositionPatient", "KVP", "PixelSpacing", "NumberOfFrames"):
        tag = Tag(keyword)
        broken[tag] = RawDataElement(tag, "DS", 4, b"\xff\xfe1a", 0, is_implicit_VR=False, is_little_endian=True)
    rules = load_rules(ROOT / "config" / "rules.yaml", SETTINGS)
    assert decide(series(broken, Dataset()), rules)[0].model is None
    assert decide(Series("1.2", "1.3", ()), rules)[0].model is None


def multi_frame():
    ds = header(ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None, ConvolutionKernel=None)
    ds.NumberOfFrames = 3

    def group(**macros):
        item = Dataset()
        for keyword, content in macros.items():
            setattr(item, keyword, Sequence([header_item(**content)]))
        return item

    def header_item(**content):
        item = Dataset()
        for keyword, value in content.items():
            setattr(item, keyword, value)
        return item

    ds.SharedFunctionalGroupsSequence = Sequence(
        [
            group(
                PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
                PixelMeasuresSequence={"PixelSpacing": [0.5, 0.5]},
                UnassignedSharedConvertedAttributesSequence={"ConvolutionKernel": "SOFT"},
            )
        ]
    )
    ds.PerFrameFunctionalGroupsSequence = Sequence(
        [group(PlanePositionSequence={"ImagePositionPatient": [0, 0, z]}) for z in (6, 0, 3)]
    )
    return series(ds)


@pytest.mark.parametrize(
    "condition",
    [
        "{fact: slice_count, equals: 3}",
        "{fact: spacing_mm, equals: 3}",
        "{fact: extent_mm, equals: 9}",
        "{fact: orientation, equals: axial}",
        "{fact: pixel_spacing_mm, equals: 0.5}",
        "{fact: kernel, equals: SOFT}",
    ],
)
def test_multi_frame_objects_are_read_through_their_functional_groups(tmp_path, condition):
    assert holds(tmp_path, condition, multi_frame())


@pytest.mark.parametrize(
    ("written", "value"),
    [("NO", "NO"), ("yes", "YES"), ("off", "OFF"), ("0815", "0815"), ("12:30", "12:30"), ("2020-01-01", "2020-01-01")],
)
def test_values_misread_by_yaml_1_1_are_text(tmp_path, written, value):
    assert holds(tmp_path, f"{{attribute: SeriesDescription, equals: {written}}}", series(SeriesDescription=value))


def requests_of(tmp_path, entries):
    (rule,) = load(tmp_path, f"rules: [{{name: r, model: tissue, when: [], destinations: {entries}}}]").rules
    return rule.requests


def test_destination_named_without_options_gets_segmentation_and_report(tmp_path):
    requests = requests_of(tmp_path, "[pacs, {to: research}]")
    assert requests == {"pacs": ResultRequest(), "research": ResultRequest()}
    assert ResultRequest() == ResultRequest(segmentation=SegmentationForm.BINARY, report=True)


def test_destinations_may_get_different_results(tmp_path):
    research = "{to: research, segmentation: both, split: group, structures: [liver, vessel], background: false, %s}"
    pacs = "{to: pacs, segmentation: none, report: false, contours: [aorta, bone], capture: true, %s}"
    entries = f"[{research % 'ibsi_codes: true'}, {pacs % 'document: true, notice: true'}]"
    assert requests_of(tmp_path, entries) == {
        "research": ResultRequest(
            segmentation=SegmentationForm.BOTH,
            split_by_group=True,
            structures=("liver", "vessel"),
            background=False,
            ibsi_codes=True,
        ),
        "pacs": ResultRequest(
            segmentation=SegmentationForm.NONE,
            report=False,
            contours=("aorta", "bone"),
            capture=True,
            document=True,
            notice=True,
        ),
    }


def test_percentiles_are_read_and_found_from_the_folder_of_the_rules(tmp_path):
    (tmp_path / "below").mkdir()
    written(tmp_path / "below" / "p.json", references((curve("aorta", "volume_ml", "F", 1, 2),)))
    asked = {"pacs": ResultRequest(percentiles=str(tmp_path / "below" / "p.json"))}
    assert requests_of(tmp_path, "[{to: pacs, percentiles: below/p.json}]") == asked
    assert requests_of(tmp_path, f"[{{to: pacs, percentiles: {tmp_path}/below/p.json}}]") == asked


def test_a_missing_or_broken_file_of_percentiles_is_refused_with_its_place(tmp_path):
    rules = "rules:\n  - {name: r, model: tissue, when: [], destinations: [\n  {to: pacs, percentiles: p.json}]}"
    with pytest.raises(ConfigurationError) as missing:
        load(tmp_path, rules)
    file, place = tmp_path / "p.json", f"{tmp_path}/rules.yaml:3: rules[0].destinations[0].percentiles"
    assert str(missing.value) == f"{place}: {file} can't be read: No such file or directory"
    content = references((curve("aorta", "volume_ml", "F", 1, 2),)).document()
    file.write_text(json.dumps({**content, "fewest_patients": 12}))
    with pytest.raises(ConfigurationError, match=r"p\.json was changed after it was written"):
        load(tmp_path, rules)


RULE = "{{name: r, model: tissue, when: [{}]}}".format
WRONG = {
    "not a mapping": ("[]", "rules.yaml:1: expected a mapping, not a list"),
    "empty": ("", "rules.yaml:1: expected a value, found nothing"),
    "not YAML": ("rules: [", "rules.yaml:1: not YAML"),
    "key twice": ("rules: []\nrules: []", "rules.yaml:2: rules: duplicate key, first used on line 1"),
    "unknown top key": ("rules: []\nmodel: x", "rules.yaml:2: model: unknown key; known: rules"),
    "rules not a list": ("rules: {}", "rules: expected a list, not a mapping"),
    "unknown key": ("rules: [{name: a, model: tissue, when: [], if: x}]", "rules[0].if: unknown key; known: name, "),
    "no when": ("rules: [{name: a, model: tissue}]", "rules[0]: when is missing"),
    "unknown model": (
        "rules: [{name: a, model: x, when: []}]",
        "rules[0].model: unknown model 'x'; configured: phantom_demo_104, tissue",
    ),
    "unknown destination": (
        "rules: [{name: a, model: tissue, when: [], destinations: [pacs, y]}]",
        "rules[0].destinations[1]: unknown destination 'y'; configured: pacs, research",
    ),
    "destination twice": (
        "rules: [{name: a, model: tissue, when: [], destinations: [pacs, pacs]}]",
        "rules[0].destinations[1]: 'pacs' appears more than once",
    ),
    **{
        name: (f"rules: [{{name: a, model: tissue, when: [], destinations: [{{to: pacs, {options}}}]}}]", said)
        for name, options, said in (
            ("unknown option", "as: binary", "rules[0].destinations[0].as: unknown key; known: segmentation, "),
            ("unknown form", "segmentation: seg", "destinations[0].segmentation: must be 'none', 'binary', "),
            (
                "unknown structure",
                "structures: [liver, lvier]",
                "structures[1]: unknown structure 'lvier' (did you mean 'liver'?); ",
            ),
            ("unknown contour", "contours: [bones]", "the groups organ, vessel, bone, muscle, tissue"),
            ("no structure", "structures: []", "destinations[0]: structures must not be empty"),
            ("unknown split", "split: side", "destinations[0].split: must be 'group', not 'side'"),
            ("no truth value", "report: 1", "destinations[0].report: expected true or false, not 1"),
            ("split of nothing", "segmentation: none, split: group", "split_by_group requires a segmentation"),
            (
                "background of nothing",
                "background: false",
                "background applies to label maps only, not to segmentation: binary",
            ),
            ("codes of nothing", "report: false, ibsi_codes: true", "ibsi_codes requires a report"),
            ("shape of nothing", "report: false, shape: true", "shape requires a report"),
            ("no file", "percentiles: null", "destinations[0].percentiles: expected a path, not nothing"),
            ("no name of a file", "percentiles: ''", "percentiles: a path must be printable and not empty"),
            ("nothing", "segmentation: none, report: false", "destinations[0]: no result is requested"),
        )
    },
    "destination without name": (
        "rules: [{name: a, model: tissue, when: [], destinations: [{report: true}]}]",
        "rules[0].destinations[0]: to is missing",
    ),
    "destination twice in two ways": (
        "rules: [{name: a, model: tissue, when: [], destinations: [pacs, {to: pacs, report: false}]}]",
        "rules[0].destinations[1].to: 'pacs' appears more than once",
    ),
    "model and refuse": (
        "rules: [{name: a, model: tissue, refuse: b, when: []}]",
        "rules[0]: expected exactly one of model and refuse",
    ),
    "neither": ("rules: [{name: a, when: []}]", "rules[0]: expected exactly one of model and refuse"),
    "refuse with priority": (
        "rules: [{name: a, refuse: b, when: [], priority: 1}]",
        "rules[0].priority: can't be used in a rule that refuses",
    ),
    "refuse with unchecked values": (
        "rules: [{name: a, refuse: b, when: [], unchecked_hu: true}]",
        "rules[0].unchecked_hu: can't be used in a rule that refuses",
    ),
    "unchecked values by a word": (
        "rules: [{name: a, model: tissue, when: [], unchecked_hu: yes}]",
        "rules[0].unchecked_hu: expected true or false, not",
    ),
    "refuse with results": (
        "rules: [{name: a, refuse: b, when: [], destinations: [{to: pacs, notice: true, capture: true}]}]",
        "rules[0].destinations[0]: a rule that refuses can only send a notice",
    ),
    "refuse to a name": (
        "rules: [{name: a, refuse: b, when: [], destinations: [pacs]}]",
        "rules[0].destinations[0]: a rule that",
    ),
    "refuse in silence": (
        "rules: [{name: a, refuse: b, when: [], destinations: [{to: pacs, notice: false}]}]",
        "rules[0].destinations[0]: a rule that refuses can only send a notice",
    ),
    "refuse and tell twice": (
        "rules: [{name: a, refuse: b, when: [], destinations: [{to: pacs, notice: true}, {to: pacs, notice: true}]}]",
        "rules[0].destinations[1].to: 'pacs' appears more than once",
    ),
    "refuse and tell nobody known": (
        "rules: [{name: a, refuse: b, when: [], destinations: [{to: nowhere, notice: true}]}]",
        "rules[0].destinations[0].to: unknown destination 'nowhere'; configured: pacs, research",
    ),
    "priority": (
        "rules: [{name: a, model: tissue, when: [], priority: high}]",
        "priority: expected a whole number, not 'high'",
    ),
    "same name": (
        "rules: [{name: a, refuse: b, when: []}, {name: a, refuse: b, when: []}]",
        "rules[1].name: 'a' appears more than once",
    ),
    "no subject": (
        f"rules: [{RULE('{equals: CT}')}]",
        "rules[0].when[0]: expected exactly one of attribute and fact",
    ),
    "two subjects": (
        f"rules: [{RULE('{attribute: KVP, fact: kernel, equals: 1}')}]",
        "expected exactly one of attribute and fact",
    ),
    "no operator": (f"rules: [{RULE('{attribute: KVP}')}]", "rules[0].when[0]: expected exactly one of exists, equals"),
    "two operators": (f"rules: [{RULE('{attribute: KVP, at_least: 1, at_most: 2}')}]", ", not 2"),
    "bad operator": (
        f"rules: [{RULE('{attribute: KVP, is: 1}')}]",
        "rules[0].when[0].is: unknown key; known: attribute, fact, of, exists, equals, ",
    ),
    "bad quantifier": (
        f"rules: [{RULE('{attribute: KVP, of: most, equals: 1}')}]",
        "of: must be 'all' or 'any', not 'most'",
    ),
    "unknown attribute": (
        f"rules: [{RULE('{attribute: Kvp, equals: 1}')}]",
        "'Kvp' is not the keyword of a standard text or number attribute (did you mean 'KVP'?)",
    ),
    "sequence": (f"rules: [{RULE('{attribute: SourceImageSequence, exists: true}')}]", "is not the keyword"),
    "unknown fact": (f"rules: [{RULE('{fact: slices, equals: 1}')}]", "unknown fact 'slices'; known: slice_count"),
    "truth value": (f"rules: [{RULE('{attribute: KVP, equals: true}')}]", "expected text or a number, not true"),
    "exists false": (f"rules: [{RULE('{attribute: KVP, exists: false}')}]", "exists: must be true"),
    "text limit": (
        f"rules: [{RULE('{attribute: KVP, at_least: many}')}]",
        "expected a finite number, not text",
    ),
    "list limit": (
        f"rules: [{RULE('{attribute: KVP, at_least: [1]}')}]",
        "expected a finite number, not a list",
    ),
    "in without list": (f"rules: [{RULE('{attribute: KVP, in: 1}')}]", "in: expected a list, such as [CT, MR]"),
    "empty list": (
        f"rules: [{RULE('{attribute: KVP, in: []}')}]",
        "in: the list must not be empty",
    ),
    "empty text": (f"rules: [{RULE('{attribute: KVP, equals: ' + repr('') + '}')}]", "equals: must not be empty"),
    "bad pattern": (
        f"rules: [{RULE('{attribute: KVP, matches: ' + repr('(') + '}')}]",
        "matches: not a valid regular expression: missing )",
    ),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG.keys())
def test_invalid_file_is_refused_with_the_location(tmp_path, text, said):
    with pytest.raises(ConfigurationError) as refusal:
        load(tmp_path, text)
    assert said in str(refusal.value)
    assert "rules.yaml" in str(refusal.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"can't read .*none\.yaml: No such file"):
        load_rules(tmp_path / "none.yaml", SETTINGS)


def test_shipped_rules_load_and_decide_as_documented():
    rules = load_rules(ROOT / "config" / "rules.yaml", SETTINGS)
    assert [d.model for d in decide(series(), rules)] == ["tissue"]
    phantom = series(count=30, ConvolutionKernel="SYNTHETIC")
    assert [d.model for d in decide(phantom, rules)] == ["phantom_demo_104", "tissue"]
    assert [d.model for d in decide(series(ImageType=["DERIVED", "SECONDARY"]), rules)] == ["tissue"]
    assert decide(series(Modality="MR"), rules)[0].model is None


@pytest.mark.parametrize(
    ("image_type", "refusing"),
    [
        (["DERIVED", "PRIMARY", "PERFUSION", "RCBF"], "perfusion-maps"),
        (["DERIVED", "PRIMARY", "AXIAL", "CBV"], "perfusion-maps"),
        (["DERIVED", "PRIMARY", "AXIAL", "TTP"], "perfusion-maps"),
        (["DERIVED", "PRIMARY", "AXIAL", "MAT_SPECIFIC"], "multi-energy"),
        (["DERIVED", "PRIMARY", "AXIAL", "MAT_REMOVED"], "multi-energy"),
        (["DERIVED", "PRIMARY", "AXIAL", "VMI"], "multi-energy"),
        (["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MONO 70"], "multi-energy"),
        (["DERIVED", "PRIMARY", "AXIAL", "ELECTRON_DENSITY"], "multi-energy"),
        (["DERIVED", "PRIMARY", "AXIAL", "EFF_ATOMIC_NUM"], "multi-energy"),
        (["DERIVED", "PRIMARY", "AXIAL", "IODINE"], "multi-energy"),
        (["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MIP"], "projections"),
        (["DERIVED", "SECONDARY", "MINIP"], "projections"),
        (["DERIVED", "SECONDARY", "AXIAL", "AVERAGE"], "projections"),
        (["DERIVED", "PRIMARY", "VOLUME", "SUBTRACTION"], "projections"),
        (["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"], "projections"),
        (["DERIVED", "SECONDARY", "MPR"], "reformatted"),
        (["DERIVED", "SECONDARY", "AXIAL", "CSA MPR"], "reformatted"),
        (["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"], None),
        (["ORIGINAL", "PRIMARY", "AXIAL", "MEAN"], None),
        (["DERIVED", "PRIMARY", "AXIAL", "MONITORED"], None),
        (["DERIVED", "PRIMARY", "AXIAL", "CT_SOM7 TEMPORAL"], None),
    ],
    ids=lambda value: "/".join(value) if isinstance(value, list) else None,
)
def test_derived_images_are_refused_by_the_shipped_rules(image_type, refusing):
    (decision,) = decide(series(ImageType=image_type), load_rules(ROOT / "config" / "rules.yaml", SETTINGS))
    assert decision.rule == (refusing or "tissue-of-axial-ct")
    assert (decision.refusal is None) == (refusing is None)


@pytest.mark.parametrize(("image_type", "is_refused"), [("DERIVED", True), ("ORIGINAL", False)])
def test_vendor_specific_maps_are_recognised_by_the_acquisition(image_type, is_refused):
    map_of_vendor = series(ImageType=[image_type, "PRIMARY", "AXIAL", "RHO_Z"], MultienergyCTAcquisition="YES")
    (decision,) = decide(map_of_vendor, load_rules(ROOT / "config" / "rules.yaml", SETTINGS))
    assert (decision.rule == "multi-energy-by-vendor") == is_refused


def test_localizer_among_the_images_does_not_hide_facts():
    scouted = series(count=20)
    scout = deepcopy(scouted.instances[0].header)
    scout.ImageType, scout.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [0, 1, 0, 0, 0, -1]
    scouted = replace(scouted, instances=(*scouted.instances, replace(scouted.instances[0], header=scout)))
    (decision,) = decide(scouted, load_rules(ROOT / "config" / "rules.yaml", SETTINGS))
    assert decision.model == "tissue"


def test_shipped_file_explains_every_key_and_fact():
    text = (ROOT / "config" / "rules.yaml").read_text(encoding="utf-8")
    comments = "\n".join(line for line in text.splitlines() if line.lstrip().startswith("#"))
    words = [
        "name:",
        "model:",
        "refuse:",
        "destinations:",
        "priority:",
        "unchecked_hu:",
        "when:",
        "attribute:",
        "fact:",
        "of:",
    ]
    options = [f"{option}:" for option in OPTIONS]
    for word in [*words, *options, *SegmentationForm, *OPERATORS, *FACTS, *FACT_ALIASES]:
        assert word in comments
