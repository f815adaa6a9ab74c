"""Turns a parsed configuration into a closed pydantic model; reports all faults at once, with place and key."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from dicom_node.settings.places import Fault, Tree, refusal, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from pydantic import ValidationInfo
    from pydantic_core import ErrorDetails

Step = str | int
JsonSchema = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)

_NEAR = 0.7
"""difflib's ratio: ``pasc`` and ``pacs`` have 0.75, ``gpu`` and ``cpu`` 0.67."""
_TEXTS = {
    "string_type": "expected text, not {seen}{quotes}",
    "int_type": "expected a whole number, not {seen}",
    "int_from_float": "expected a whole number, not {seen}",
    "float_type": "expected a number, not {seen}",
    "bool_type": "expected true or false, not {seen}",
    "path_type": "expected a path, not {seen}{quotes}",
    "tuple_type": "expected a list, not {seen}",
    "dict_type": "expected a mapping, not {seen}",
    "model_type": "expected a mapping, not {seen}",
    "missing": "{last} is missing",
    "union_tag_not_found": "{last} is missing",
    "union_tag_invalid": "must be one of {expected_tags}, not {seen}{nearest}",
    "literal_error": "must be {expected}, not {seen}{nearest}",
    "enum": "must be {expected}, not {seen}{nearest}",
    "greater_than_equal": "must be at least {ge:.10g}, not {seen}",
    "greater_than": "must be above {gt:.10g}, not {seen}",
    "less_than_equal": "must be at most {le:.10g}, not {seen}",
    "less_than": "must be below {lt:.10g}, not {seen}",
    "finite_number": "must be a finite number",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters, not {length}",
    "value_error": "{error}",
}
"""Our messages by pydantic's type of error; for other types, pydantic's own message is used."""


class Closed(BaseModel):
    """A frozen part of a configuration; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def checked(tree: Tree, model: type[Model], context: Mapping[str, Any] | None = None) -> Model:
    """``tree`` as ``model``; ``context`` is for its validators, such as :func:`configured`.

    Raises:
        ConfigurationError: all faults, one per line.
    """
    try:
        return model.model_validate(tree.plain(), context=context)
    except ValidationError as error:
        schema = model.model_json_schema()
        raise refusal(_fault(each, tree, schema) for each in error.errors(include_url=False)) from None


def misplaced(faults: Iterable[tuple[Sequence[Step], str]]) -> ValidationError:
    """The error for a validator to raise for faults inside its value: the steps to each, and what is wrong."""
    return ValidationError.from_exception_data(
        "configuration",
        [
            InitErrorDetails(type=PydanticCustomError("fault", "{text}", {"text": text}), loc=tuple(steps), input=None)
            for steps, text in faults
        ],
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'X'?)``, or nothing if none of ``known`` is similar; ignores case."""
    by_folded = {each.casefold(): each for each in known}
    nearest = get_close_matches(name.casefold(), by_folded, n=1, cutoff=_NEAR)
    return f" (did you mean {by_folded[nearest[0]]!r}?)" if nearest else ""


def no_such(kind: str, name: str, names: Iterable[str]) -> str:
    """The message for a ``name`` that is not one of the configured ``names``."""
    listed = ", ".join(sorted(names)) or "none"
    return f"unknown {kind} {shown(name)}{did_you_mean(name, names)}; configured: {listed}"


def configured(kind: str) -> Callable[[str, ValidationInfo], str]:
    """A validator of names that must be among the names for ``kind`` in the validation context."""

    def validate(name: str, info: ValidationInfo) -> str:
        names = (info.context or {}).get(kind, ())
        if name not in names:
            raise ValueError(no_such(kind, name, names))
        return name

    return validate


def _fault(error: ErrorDetails, tree: Tree, schema: JsonSchema) -> Fault:
    location, context = error["loc"], error.get("ctx", {})
    if "discriminator" in context:  # the location ends at the union
        location = (*location, context["discriminator"].strip("'"))
    found, path = tree.find(location)
    if error["type"] == "extra_forbidden":
        return Fault(found.place, path, _unknown_key(str(location[-1]), schema, location[:-1]))
    value = found.plain()
    choices = re.findall(r"'([^']*)'", context.get("expected") or context.get("expected_tags") or "")
    text = _TEXTS.get(error["type"], error["msg"].replace("{", "{{").replace("}", "}}")).format(
        **context,
        last=location[-1] if location else "",
        seen=shown(value),
        quotes="; put it in quotes" if isinstance(value, int | float) else "",
        nearest=did_you_mean(value, choices) if isinstance(value, str) else "",
        length=len(str(error["input"])),  # of a key, where that is too long
    )
    if any(each.get("writeOnly") for each in schemas_at(schema, location)):  # OpenAPI's mark of a secret
        text = text.partition(", not ")[0]
    return Fault(found.place, path, text)


def _unknown_key(key: str, schema: JsonSchema, parent: Sequence[Step]) -> str:
    known = [name for each in schemas_at(schema, parent) for name in each.get("properties", ())]
    return f"unknown key{did_you_mean(key, known)}; known: {', '.join(known)}"


def schemas_at(root: JsonSchema, path: Sequence[Step]) -> list[JsonSchema]:
    """The JSON schemas that apply to a value at ``path``; none for an unknown key."""
    found = [root]
    for step in path:
        found = [inner for each in found for inner in _below(root, each, step)]
    return [variant for each in found for variant in _variants(root, each)]


def _below(root: JsonSchema, schema: JsonSchema, step: Step) -> Iterator[JsonSchema]:
    if step in (tags := schema.get("discriminator", {}).get("mapping", {})):  # in locations, not in files
        yield {"$ref": tags[step]}
        return
    for variant in _variants(root, schema):
        inner = variant.get("items") if isinstance(step, int) else variant.get("properties", {}).get(step)
        inner = inner or (variant.get("additionalProperties") if isinstance(step, str) else None)
        if isinstance(inner, dict):
            yield inner


def _variants(root: JsonSchema, schema: JsonSchema) -> Iterator[JsonSchema]:
    """Each alternative of a union, with references resolved."""
    if "$ref" in schema:
        target = root["$defs"][schema["$ref"].rpartition("/")[2]]
        schema = {**schema, **target}
        del schema["$ref"]
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    if not alternatives:
        yield schema
        return
    shared = {key: value for key, value in schema.items() if key not in ("anyOf", "oneOf", "discriminator")}
    for each in alternatives:
        yield from _variants(root, {**shared, **each})
