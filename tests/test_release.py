"""What a release guarantees: one version everywhere, and changed texts in patients' studies only with a new version."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import dicom_node
from dicom_node.types import ResultKind
from tests.patient_texts import digest, fault, recorded, texts

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RELEASES = re.findall(r"^## (\d+\.\d+\.\d+) — (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
"""Version and date (or "unreleased") of each heading of the changelog, newest first."""


def test_the_same_version_is_stated_everywhere():
    assert PROJECT["version"] == dicom_node.__version__ == RELEASES[0][0]


def test_tag_of_this_commit_names_this_version_and_the_changelog_has_its_date():
    command = ["git", "tag", "--points-at", "HEAD", "--list", "v[0-9]*"]
    tags = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    assert tags in ([], [f"v{PROJECT['version']}"])
    if tags:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", RELEASES[0][1]), "the changelog has no release date"


def test_releases_are_in_order_and_all_but_the_next_are_dated():
    versions = [tuple(map(int, version.split("."))) for version, _ in RELEASES]
    assert versions == sorted(set(versions), reverse=True)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in RELEASES[1:])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d|unreleased", RELEASES[0][1])


def test_texts_of_a_released_version_are_unchanged():
    """Result UIDs derive from the version, not from the texts: changed texts would give two objects with one UID."""
    released = RELEASES[0][1] != "unreleased"
    assert fault(dicom_node.__version__, digest(texts()), recorded(), released=released) is None


@pytest.mark.parametrize(
    ("version", "current", "released", "says"),
    [
        ("0.2.0", "as it was", True, None),
        ("0.2.0", "another", True, "bump the version"),
        ("0.3.0", "another", True, "record its texts"),
        ("0.3.0", "another", False, None),
        ("0.2.0", "as it was", False, "calls it unreleased"),
    ],
)
def test_changed_texts_need_a_new_version(version, current, released, says):
    seen = fault(version, current, {"0.2.0": "as it was"}, released=released)
    assert seen is None if says is None else says in seen


def test_texts_cover_every_kind_of_object():
    lines = texts()
    assert {line.split(" ", 1)[0] for line in lines} == {str(kind) for kind in ResultKind}
    assert any("research software" in line.lower() for line in lines)
    assert digest([*lines, "one more"]) != digest(lines)
