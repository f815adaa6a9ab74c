"""The steps of docs/start/first-result.md, carried out as written, with a PACS on loopback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydicom import dcmread

from dicom_node.demo.phantom_series import write_series
from dicom_node.demo.processes import Program
from inference.phantom import phantom
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.acceptance

PAGE = Path(__file__).resolve().parents[2] / "docs" / "start" / "first-result.md"
ADDRESSES = {"10.1.2.3": "127.0.0.1", "0.0.0.0": "127.0.0.1"}


def dicom_node(config, *words):
    command = [sys.executable, "-m", "dicom_node.cli", *(("--config", str(config)) if config else ()), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def edited_as_the_page_says(text: str, node_port: int, pacs_port: int, data_folder: Path) -> str:
    """node.yaml with its keys replaced by those of the page's code block."""
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    wanted = yaml.safe_load(block)
    for stated, used in ADDRESSES.items():
        wanted = json.loads(json.dumps(wanted).replace(stated, used))
    assert set(wanted) == {"node", "sources", "destinations"}
    wanted["destinations"]["pacs"]["port"] = pacs_port
    for key, value in (wanted["node"] | {"port": node_port, "data_folder": str(data_folder)}).items():
        text, found = re.subn(rf"^  {key}: .*$", f"  {key}: {value}", text, flags=re.MULTILINE)
        assert found == 1, key
    for key, empty in (("sources", "[]"), ("destinations", "{}")):
        line = f"{key}: {empty}"
        assert len(re.findall(rf"^{re.escape(line)}", text, re.MULTILINE)) == 1, line
        text = re.sub(rf"^{re.escape(line)}", f"{key}: {json.dumps(wanted[key])}", text, flags=re.MULTILINE)
    return text


def test_following_the_steps_delivers_seg_and_sr_to_the_pacs(tmp_path):
    made = dicom_node(None, "config", "init", str(tmp_path / "etc"))
    assert made.returncode == 0, made.stderr
    config, rules = tmp_path / "etc" / "node.yaml", tmp_path / "etc" / "rules.yaml"
    node_port, pacs_port = free_port(), free_port()
    config.write_text(edited_as_the_page_says(config.read_text(), node_port, pacs_port, tmp_path / "data"))
    head, tail = rules.read_text().split("- name: tissue-of-axial-ct")
    assert tail.count("destinations: []") == 1
    rules.write_text(f"{head}- name: tissue-of-axial-ct{tail.replace('destinations: []', 'destinations: [pacs]')}")

    archive = tmp_path / "archive"
    archive.mkdir()
    write_series(phantom(11, (3.0, 3.0, 6.0), "chest"), tmp_path / "ct")
    storescp = ["storescp", "-aet", "PACS1", "-od", str(archive), str(pacs_port)]
    with Program("storescp", storescp, tmp_path / "storescp.log") as pacs:
        pacs.wait_for_port(pacs_port)
        checked = dicom_node(config, "check")
        assert checked.returncode == 0, checked.stdout
        serve = [sys.executable, "-m", "dicom_node.cli", "--config", str(config), "serve"]
        with Program("dicom-node serve", serve, tmp_path / "node.log") as node:
            node.wait_for_port(node_port)
            send = ["storescu", "--scan-directories", "-aet", "PACS1", "-aec", "DICOMNODE"]
            subprocess.run([*send, "127.0.0.1", str(node_port), str(tmp_path / "ct")], check=True, timeout=120)
            wait_until(lambda: delivered(config), 120)
    assert sorted(str(dcmread(path).Modality) for path in archive.iterdir()) == ["SEG", "SR"]


def delivered(config) -> bool:
    """Skip this series' second job, which comes from the phantom rule and has no destination."""
    states = {job["model"]: job["state"] for job in json.loads(dicom_node(config, "jobs", "--json").stdout)}
    return states.get("tissue") == "DELIVERED"
