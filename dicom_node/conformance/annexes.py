"""Sections 5 to 9: services that are not supported, character sets, security, and the created objects."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dicom_node.conformance.attributes import OUTSIDE_THE_IOD
from dicom_node.conformance.created import sop_class_name
from dicom_node.conformance.markdown import table
from inference.structures import STRUCTURES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dicom_node.conformance.attributes import Attribute
    from dicom_node.conformance.content import ContentItem
    from dicom_node.conformance.created import CreatedObject

_NO_MEDIA = "The node neither reads nor writes media."
_NO_CDA = "None."
_CHARACTER_SETS = """
Every character set is supported in the sense that nothing is lost: names, identifiers and the other patient and study
attributes are copied from the source to the results byte for byte, together with the Specific Character Set
(0008,0005) if the source has one. Text that the node adds is ASCII, which is the same in every character set. Queries
use UIDs only. Report page and PDF show a name if their font (DejaVu Sans) has all its characters and it is written from
left to right; otherwise they refer to the header.
"""
_PROFILES = """
No profile of PS3.15 is supported. There is no TLS: run the node in a protected network, or behind a proxy that
terminates TLS. Data sets are stored byte for byte as received, so Digital Signatures in them stay valid until the data
sets are deleted; the node neither verifies nor creates signatures. There is no audit trail in the format of PS3.15 A.5
and no de-identification.
"""
_ASSOCIATION_SECURITY = """
An association is accepted from configured sources only: the called AE title must be that of the node, the calling AE
title that of a source, and the peer's address one of those configured for that source, if any are. If no source is
configured, no association is accepted. Each source may be limited to Verification or to Storage. User identity
negotiation is ignored. PDUs, command sets, data sets, associations and timeouts are limited (section 4.2.1).
"""
_APPLICATION_SECURITY = "None."
_LEGEND = """
Presence: ALWAYS (present with a value), VNAP (value not always present: the attribute is present, but may be empty),
ANAP (attribute not always present), EMPTY (present without a value).

Source of value: COPY (copied from the source series), FIXED (the value given, or one of those given), CONFIG (the
station name in the configuration), AUTO (generated). AUTO lists what the value depends on: source (headers, grid and
pixels of the source series), model, installation (configuration, and the UID that the installation generated for
itself), run (time, revision, completeness, supersession), labels (the structures found, and where), request (what the
destination asks for). A value listed as both copied and generated is copied if the source has a valid value. Sequences
with items have no source of their own; a coded concept is given in one line. Types are those of PS3.3.
"""
_USAGE = """
Volumes are reconstructed from Pixel Data, Image Position and Image Orientation (Patient), Pixel Spacing, Rescale
Slope and Intercept and the attributes of the Image Pixel module (in multi-frame objects, from the functional groups
that contain them, and a rescale from the header if they do not), never from Slice Location, Instance Number or gantry
tilt. Bits of a pixel above Bits Stored are ignored. If JPEG 2000 frames have another sign than Pixel Representation,
the sign whose values lie on the scale of CT is used. Pixels that Pixel Padding Value and Pixel Padding Range Limit name
in an image of the series, or that are constant outside the reconstruction circle, are air to the model and belong to no
structure. Rescale Type may be HU or absent, or US in original images with air around the patient; others are refused,
and so are values that no scale of CT has and images with a Modality LUT Sequence. Instances whose SOP Class, SOP
Instance, Study or Series Instance UID is missing or invalid are refused, and so are series with several patients,
studies or Frames of Reference. A site's rules may use any standard attribute. Attributes copied to
results are marked COPY in section 9.1.1.
"""
_MAPPING = "A copied attribute keeps its tag. Exceptions are listed in section 9.1.1."
_COERCED = "None: received data sets are neither modified nor forwarded."
_NO_PRIVATE = "None: created objects have no private attributes."
_GREYSCALE = """
Not applicable: the node has no display. Secondary captures are RGB, with the CT in a linear window; they are not
prepared for the Grayscale Standard Display Function.
"""
_STRUCTURES = """
Segmented Property Category, Type and Type Modifier, Anatomic Region and its modifier, and the display colour of each of
the {count} structures that a model may name are listed in `inference/structures.csv`. The coding schemes are {schemes}.
"""


def sections(created: Sequence[CreatedObject]) -> list[tuple[str, str]]:
    """Numbered headings and their text."""
    return [
        ("5 Media interchange", _NO_MEDIA),
        ("6 Transformation of DICOM to CDA", _NO_CDA),
        ("7 Support of character sets", _CHARACTER_SETS),
        ("8 Security", ""),
        ("8.1 Security profiles", _PROFILES),
        ("8.2 Association level security", _ASSOCIATION_SECURITY),
        ("8.3 Application level security", _APPLICATION_SECURITY),
        ("9 Annexes", ""),
        ("9.1 IOD contents", ""),
        ("9.1.1 Created SOP Instances", _created(created)),
        *_each(created),
        ("9.1.2 Usage of attributes from received IODs", _USAGE),
        ("9.1.3 Attribute mapping", _MAPPING),
        ("9.1.4 Coerced or modified attributes", _COERCED),
        ("9.2 Data dictionary of private attributes", _private(created)),
        ("9.3 Coded terminology and templates", ""),
        ("9.3.1 Coded concepts", _codes(created)),
        ("9.3.2 Templates", _templates(created)),
        ("9.3.3 Private code definitions", _private_codes(created)),
        ("9.4 Greyscale image consistency", _GREYSCALE),
        ("9.5 Standard Extended, Specialized and Private SOP Classes", _extended(created)),
        ("9.6 Private transfer syntaxes", "None."),
    ]


def facts(created: Sequence[CreatedObject]) -> list[dict[str, Any]]:
    """The created objects as JSON values."""
    return [{**asdict(each), "codes": sorted(each.codes)} for each in created]


# ---- created objects


def _created(created: Sequence[CreatedObject]) -> str:
    rows = [
        (each.title, sop_class_name(each.sop_class_uid), each.modality, _numbers(each.series_numbers))
        for each in created
    ]
    kinds = table(("object", "SOP Class", "Modality", "Series Number ends with"), rows)
    shared = _shared(created)
    return f"""
All objects are created in the study of the source, each kind in its own series. Series Number consists of that of the
source series, three digits derived from the model's name, and two digits for the kind; further series of a kind are
numbered consecutively. UIDs are derived (PS3.5 B.2): the same model on the same series revision gives the same
instances. A series that is received again with attributes that archives add, or in another lossless transfer syntax,
creates no objects. One whose content changed, or changed back, is a new revision: its objects have new UIDs and name
those that they replace. Structured reports are COMPLETE unless images are missing, and always UNVERIFIED.

{kinds}

{_LEGEND}

Table 9-1: attributes common to all created objects (modules as in Segmentation)

{_attribute_table(shared)}
"""


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number:02d}" for number in numbers)


def _shared(created: Sequence[CreatedObject]) -> list[Attribute]:
    """Attributes that are the same in every object, apart from the module, and those within them."""
    others = [{_without_module(attribute) for attribute in each.attributes} for each in created[1:]]
    roots: dict[str, bool] = {}
    for attribute in created[0].attributes:
        is_same = all(_without_module(attribute) in other for other in others)
        roots[attribute.path[0]] = roots.get(attribute.path[0], True) and is_same
    return [attribute for attribute in created[0].attributes if roots[attribute.path[0]]]


def _without_module(attribute: Attribute) -> tuple[object, ...]:
    return attribute.path, attribute.vr, attribute.presence, attribute.source, attribute.follows_from, attribute.value


def _each(created: Sequence[CreatedObject]) -> list[tuple[str, str]]:
    shared = {attribute.path for attribute in _shared(created)}
    return [(f"9.1.1.{number} {each.title}", _object(each, shared)) for number, each in enumerate(created, start=1)]


def _object(each: CreatedObject, shared: set[tuple[str, ...]]) -> str:
    unused = ", ".join(f"{name} ({usage})" for name, usage in each.unused_modules)
    own = [attribute for attribute in each.attributes if attribute.path not in shared]
    text = f"""
{sop_class_name(each.sop_class_uid)}, {each.sop_class_uid}. Modules of the IOD (usage) without attributes in this
object: {unused}.

{_attribute_table(own)}
"""
    return f"{text}\nContent tree\n\n{_content_table(each.content)}\n" if each.content else text


def _attribute_table(attributes: Iterable[Attribute]) -> str:
    rows = []
    module = ""
    for each in attributes:
        name = f"{'>' * (len(each.path) - 1)}{each.name}"
        value = _origin(each)
        rows.append(
            ("" if each.module == module else each.module, name, each.tag, each.vr, each.type, each.presence, value)
        )
        module = each.module
    return table(("module", "attribute", "tag", "VR", "type", "presence", "source of value"), rows)


def _content_table(items: Iterable[ContentItem]) -> str:
    rows = [
        (
            f"{'>' * each.level}{each.relationship}",
            each.value_type,
            " ".join(filter(None, (each.concept, each.template, each.unit and f"in {each.unit}"))),
            each.presence,
            _origin(each),
        )
        for each in items
    ]
    return table(("relationship", "value type", "concept", "presence", "source of value"), rows)


def _origin(each: Attribute | ContentItem) -> str:
    follows = f" ({', '.join(each.follows_from)})" if each.follows_from else ""
    return f"{each.source}{follows}{f': {each.value}' if each.value else ''}"


# ---- codes, templates, extensions


def _codes(created: Sequence[CreatedObject]) -> str:
    of_structures = {
        (code.scheme, code.value)
        for each in STRUCTURES
        for code in (each.category, each.type, each.type_modifier, each.region, each.region_modifier)
        if code is not None
    }
    used: dict[tuple[str, str, str], list[str]] = {}
    for each in created:
        for code in each.codes:
            if code[:2] not in of_structures:
                used.setdefault(code, []).append(each.kind)
    rows = [(*code, ", ".join(dict.fromkeys(kinds))) for code, kinds in sorted(used.items())]
    schemes = ", ".join(sorted({scheme for scheme, _ in of_structures}))
    return f"""
{_STRUCTURES.format(count=len(STRUCTURES), schemes=schemes).strip()}

Other concepts that the node uses:

{table(("scheme", "code", "meaning", "in"), rows)}
"""


def _templates(created: Sequence[CreatedObject]) -> str:
    rows = [
        (each.title, ", ".join(sorted({item.template for item in each.content if item.template})))
        for each in created
        if each.content
    ]
    return table(("object", "templates identified in its content"), rows)


def _private_codes(created: Sequence[CreatedObject]) -> str:
    private = sorted({code for each in created for code in each.codes if code[0].startswith("99")})
    return table(("scheme", "code", "meaning"), private) if private else "None."


def _private(created: Sequence[CreatedObject]) -> str:
    private = sorted({each.tag for item in created for each in item.attributes if int(each.tag[1:5], 16) % 2})
    return table(("tag",), ((tag,) for tag in private)) if private else _NO_PRIVATE


def _extended(created: Sequence[CreatedObject]) -> str:
    rows = [
        (each.title, sop_class_name(each.sop_class_uid), attribute.name, attribute.tag)
        for each in created
        for attribute in each.attributes_outside_the_iod
    ]
    if not rows:
        return f"None: no created object has an attribute {OUTSIDE_THE_IOD} of its SOP Class."
    described = table(("object", "SOP Class", "attribute", "tag"), rows)
    return f"""
The following objects are Standard Extended SOP Classes (PS3.4 B.4.1), because they have standard attributes that are
not in their IOD. There are no Specialized or Private SOP Classes.

{described}
"""
