"""The scripts under findings/ state their subject; CI does not run them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_pins_its_packages_and_names_guess_version_and_outcome(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    header = text[: text.index("\nset -euo pipefail\n")]
    assert os.access(script, os.X_OK)
    assert re.search(r"^# Guess( \(not blind\))?: ", header, re.MULTILINE)
    assert re.search(r"^# Seen: ", header, re.MULTILINE)
    installed = re.findall(r'bin/pip" install --quiet ((?:[^\n]|(?<=\\)\n)+)', text)
    pins = [each for line in installed for each in line.replace("\\\n", "").split()]
    assert pins
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins), pins
    pinned = {tuple(pin.split("==")) for pin in pins}
    named = {pin for pin in pinned if re.search(rf"{re.escape(pin[0])} {re.escape(pin[1])}\b", header)}
    assert named, "the header does not name the installed version"
    (row,) = [line for line in (FOLDER / "README.md").read_text().splitlines() if f"]({script.name})" in line]
    software = row.split("|")[2]
    assert all(f"{name} {version}" in header for name, version in re.findall(r"([\w-]+) ([\d.]+)", software)), row


def test_table_lists_every_script_and_no_other() -> None:
    listed = re.findall(r"\]\((\S+\.sh)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert listed == [script.name for script in SCRIPTS]
