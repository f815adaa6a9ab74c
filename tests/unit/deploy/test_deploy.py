"""What can be checked of the deployment without a container engine: the files agree with each other."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydicom import dcmread

from dicom_node.demo.ct_series import SyntheticPatient, write_ct_series
from dicom_node.route.rules import decide
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.standard.files import read_series_folder
from inference.types import Geometry, Volume

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
INSTRUCTIONS = {
    *("FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER"),
    *("VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"),
}
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_every_file_named_in_compose_exists():
    for service in COMPOSE["services"].values():
        context = DEPLOY / service["build"]["context"]
        assert (context / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (
                source in COMPOSE["volumes"]
                or not source.startswith(".")
                or "models" in source
                or (DEPLOY / source).exists()
            )


@pytest.mark.parametrize("dockerfile", sorted(DEPLOY.glob("Dockerfile*")), ids=lambda path: path.name)
def test_files_copied_by_a_dockerfile_exist_and_are_in_the_build_context(dockerfile):
    text = dockerfile.read_text().replace("\\\n", " ")
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", text, flags=re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists()
            assert any(source == name or source.startswith(f"{name}/") for name in sent)
    for line in text.splitlines():
        assert not line.strip() or line.startswith("#") or line.split()[0] in INSTRUCTIONS


def test_node_and_orthanc_in_compose_know_each_other():
    settings = load_settings(DEPLOY / "compose" / "node.yaml")
    load_rules(DEPLOY / "compose" / "rules.yaml", settings)
    orthanc = COMPOSE["services"]["orthanc"]["environment"]
    assert orthanc["NODE_AE_TITLE"] == settings.node.ae_title
    assert int(orthanc["NODE_PORT"]) == settings.node.port
    assert orthanc["NODE_HOST"] in COMPOSE["services"]
    shipped = _orthanc_configuration({})
    assert shipped["DicomAet"] == settings.destinations["orthanc"].ae_title == settings.sources[0].ae_title
    assert shipped["DicomPort"] == settings.destinations["orthanc"].port
    assert settings.destinations["orthanc"].host in COMPOSE["services"]


def test_compose_rules_accept_a_ct_without_a_kernel(tmp_path):
    voxels = np.zeros((20, 16, 16), np.int16)
    write_ct_series(Volume(voxels, Geometry(voxels.shape, np.eye(4))), tmp_path, SyntheticPatient(1, 50, "F"))
    for path in tmp_path.iterdir():
        dataset = dcmread(path)
        del dataset.ConvolutionKernel
        dataset.save_as(path)
    (series,) = read_series_folder(tmp_path)
    rules = load_rules(DEPLOY / "compose" / "rules.yaml", load_settings(DEPLOY / "compose" / "node.yaml"))
    assert [decision.model for decision in decide(series, rules)] == ["tissue"]


def test_orthanc_configuration_is_closed_unless_the_environment_opens_it():
    assert _orthanc_configuration({})["RemoteAccessAllowed"] is False
    opened = _orthanc_configuration(COMPOSE["services"]["orthanc"]["environment"])
    assert opened["RemoteAccessAllowed"] is True
    assert opened["Plugins"] == ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"]


def _orthanc_configuration(environment):
    text = (ROOT / "orthanc" / "orthanc.json").read_text()
    text = re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1], found[2]), text)
    return json.loads(text)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_analyze_accepts_the_unit(tmp_path):
    unit = tmp_path / "dicom-node.service"
    text = (DEPLOY / "dicom-node.service").read_text()
    unit.write_text(text.replace("/opt/dicom-node/.venv/bin/dicom-node", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit.name in line]) == (0, [])
