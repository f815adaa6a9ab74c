"""The dialect of configuration files: what is text, what is a number, and what the loader refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.errors import ConfigurationError
from dicom_node.settings.loader import DEEPEST, LARGEST_FILE_BYTES, parse, read_file
from dicom_node.settings.places import Tree

TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x2FFF, exclude_categories=("Cc", "Cs")), max_size=8)
CONTENT = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


def plain(text):
    return parse(text, "f.yaml").plain()


@given(CONTENT)
def test_json_is_read_as_json(content):
    assert plain(json.dumps(content, ensure_ascii=False)) == content


@given(st.text("[]{}:,- \n\t'\"&*!%@#|>?ab1\\u~.", max_size=60) | st.text(max_size=30))
def test_any_text_is_read_or_refused_with_its_line(text):
    try:
        assert isinstance(parse(text, "f.yaml"), Tree)
    except ConfigurationError as error:
        assert all(line.startswith("f.yaml:") for line in str(error).splitlines())  # noqa: PT017


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *[
            (text, text)
            for text in ("NO", "yes", "off", "True", "0815", "0o17", "0x1F", "12:30", "1_000", "2020-01-01")
        ],
        *[(text, text) for text in (".inf", ".nan", "1e3", "1.", "=", "+", ".", "a#b", "a:b", "<<")],
        *[(f"'{text}'", text) for text in ("104", "true", "null", "~", "")],
        *[("true", True), ("false", False), ("null", None), ("~", None), ("", None)],
        *[("104", 104), ("-5", -5), ("+5", 5), ("0", 0), ("2.5", 2.5), (".5", 0.5), ("-1.5e-3", -0.0015)],
        ("|\n  one\n  two\n", "one\ntwo\n"),
    ],
)
def test_value_is_text_unless_it_can_only_be_something_else(written, value):
    (read,) = plain(f"- {written}")
    assert (read, type(read)) == (value, type(value))


def test_every_value_keeps_its_line_and_an_alias_that_of_its_anchor():
    tree = parse("a:\n  b: &x\n    - 1\n    - c: 2\nd: *x\n", "f.yaml")
    lines = {path: tree.find(path)[0].place.line for path in [("a",), ("a", "b"), ("a", "b", 0), ("a", "b", 1, "c")]}
    assert list(lines.values()) == [1, 2, 3, 4]
    assert tree.plain()["d"] == [1, {"c": 2}]
    assert [tree.find(path)[0].place.line for path in [("d",), ("d", 1, "c")]] == [5, 4]


def test_byte_order_mark_is_not_part_of_the_first_key(tmp_path):
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbfnode: 1\r\nother: 2\r\n")
    assert read_file(tmp_path / "f.yaml").plain() == {"node": 1, "other": 2}


def nested_aliases(levels, width):
    """A list of ``width`` aliases of a list of ``width`` aliases ... ``levels`` deep."""
    lines = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels)]
    return "\n".join(["a0: &a0 [x]", *lines])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: 1\nb: \xe9\n", ":2: not UTF-8"),
        ("a: 1".encode("utf-16"), ":1: not UTF-8"),
        (b"#" * (LARGEST_FILE_BYTES + 1), f": larger than {LARGEST_FILE_BYTES} bytes, the limit for a configuration"),
        (b"a: 1\nb: \x07", ":2: not YAML: U+0007 is not allowed"),
        (b"[" * 100_000, f":1: nested more than {DEEPEST} levels deep"),
        (b"- " * 1000, f":1: nested more than {DEEPEST} levels deep"),
        (nested_aliases(20, 10).encode(), ":6: a5[3]: more than 100000 values, counting each alias in full"),
        (nested_aliases(200, 1).encode(), ":32: a31[0]: an alias nests more than 32 levels deep"),
        (b"a: &a [*a]", ":1: a[0]: an alias (*) without an anchor (&) above it; put text in quotes"),
        (b"a: " + b"9" * 5000, ":1: a: a number with 5000 characters, expected at most 300"),
        (b'a: "\\UFFFFFFFF"', ": not YAML: an escape sequence is out of range"),
        (b"? [a]\n: b", ":1: a key must be text"),
        (b"a: 1\na: 2\nb: 3\nb: 4\n", ":2: a: duplicate key, first used on line 1"),
    ],
)
def test_unreadable_file_is_refused_with_its_line(content, said, tmp_path):
    file = tmp_path / "f.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        read_file(file)
    assert str(refused.value).splitlines()[0] == f"{file}{said}"


def test_every_duplicate_key_is_named():
    with pytest.raises(ConfigurationError) as refused:
        parse("a: 1\na: 2\nb: {c: 3, c: 4}\n", "f.yaml")
    assert str(refused.value).splitlines() == [
        "f.yaml:2: a: duplicate key, first used on line 1",
        "f.yaml:3: b.c: duplicate key, first used on line 3",
    ]


def test_folder_instead_of_a_file_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"can't read .*: Is a directory"):
        read_file(tmp_path)
