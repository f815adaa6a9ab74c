"""What a release promises: one version everywhere, and other texts in patients' studies only under another version."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import dicom_node

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RELEASES = re.findall(r"^## (\d+\.\d+\.\d+) — (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
"""Version and date (or "unreleased") of each heading of the changelog, newest first."""


def test_one_version_is_stated_everywhere():
    assert PROJECT["version"] == dicom_node.__version__ == RELEASES[0][0]


def test_a_tag_of_this_commit_names_this_version_and_the_changelog_has_its_date():
    command = ["git", "tag", "--points-at", "HEAD", "--list", "v[0-9]*"]
    tags = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    assert tags in ([], [f"v{PROJECT['version']}"])
    if tags:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", RELEASES[0][1]), "the changelog does not say when it was released"


def test_releases_are_in_order_and_each_is_dated_but_the_next():
    versions = [tuple(map(int, version.split("."))) for version, _ in RELEASES]
    assert versions == sorted(set(versions), reverse=True)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for _, date in RELEASES[1:])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d|unreleased", RELEASES[0][1])
