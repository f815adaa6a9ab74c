"""Tables for people show values unchanged; square brackets are not markup."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from click.testing import CliRunner

from dicom_node.cli import main
from dicom_node.demo.ct_series import SyntheticPatient, write_ct_series
from inference.types import Geometry, Volume

PATTERN = "[a-z]+[/b]"


def test_regular_expression_is_shown_completely(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    write_ct_series(
        Volume(np.zeros((4, 16, 16), np.int16), Geometry((4, 16, 16), np.eye(4))),
        tmp_path / "ct",
        SyntheticPatient(1, 50, "F"),
    )
    rule = f"{{name: '[bold]', model: tissue, when: [{{attribute: StationName, matches: '{PATTERN}'}}]}}"
    (tmp_path / "rules.yaml").write_text(f"rules: [{rule}]")
    config = tmp_path / "node.yaml"
    config.write_text("node: {data_folder: data}\nmodels: {tissue: {kind: tissue}}\n")
    done = CliRunner().invoke(main, ["--config", str(config), "rules", "explain", str(tmp_path / "ct")])
    assert done.exit_code == 0, done.output
    (row,) = [line for line in done.output.splitlines() if "│ no" in line]
    assert PATTERN in row
    assert "[bold]" in row


def test_demo_failure_shows_its_reason_for_any_folder_name(tmp_path):
    folder = tmp_path / "[/red]"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "dicom_node.cli", "demo", "--series", str(folder), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "[/red] has no CT images" in done.stdout
