"""Default locations, which do not depend on the current folder."""

import os

import pytest
from click.testing import CliRunner

from dicom_node.app import places
from dicom_node.cli import main
from dicom_node.errors import ConfigurationError
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from inference.models.package import read_package


@pytest.fixture
def ordinary_user(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("DICOM_NODE_CONFIG", raising=False)
    return tmp_path


def test_library_of_a_user_is_in_the_users_data_folder(ordinary_user, monkeypatch):
    assert places.models_folder_without_configuration() == ordinary_user / "home/.local/share/dicom-node/models"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert str(places.models_folder_without_configuration()) == "/data/dicom-node/models"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # to be ignored according to the specification
    assert places.models_folder_without_configuration() == ordinary_user / "home/.local/share/dicom-node/models"


def test_library_of_root_is_the_machines_library(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert str(places.models_folder_without_configuration()) == "/var/lib/dicom-node/models"


def test_written_configuration_loads(tmp_path):
    folder = tmp_path / "etc" / "node"
    assert {path.name for path in places.write_configuration(folder)} == {
        *("node.yaml", "rules.yaml", places.DEMO_MODEL),
    }
    settings = load_settings(folder / "node.yaml")
    assert load_rules(settings.rules_file, settings).rules
    assert read_package(settings.models[places.DEMO_MODEL].package).identity.name == places.DEMO_MODEL


@pytest.mark.parametrize("existing", ["node.yaml", "rules.yaml", f"models/{places.DEMO_MODEL}/manifest.json"])
def test_existing_files_are_not_overwritten(tmp_path, existing):
    mine = tmp_path / existing
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(ConfigurationError, match=r"nothing was written, because it would overwrite .*"):
        places.write_configuration(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"can't write .*file: "):
        places.write_configuration(tmp_path / "file")


def test_config_init_states_the_next_step(tmp_path):
    folder = tmp_path / "etc"
    done = CliRunner().invoke(main, ["config", "init", str(folder)])
    assert done.exit_code == 0
    assert f"wrote {folder / 'node.yaml'}\n" in done.stdout
    assert done.stdout.endswith(f"dicom-node --config {folder / 'node.yaml'} check\n")
    again = CliRunner().invoke(main, ["config", "init", str(folder)])
    assert (again.exit_code, again.stdout) == (1, "")
    assert "would overwrite" in again.stderr


def test_current_folder_has_no_influence(ordinary_user, monkeypatch):
    """A configuration that happens to be in the current folder is not used."""
    places.write_configuration(ordinary_user / "config")
    monkeypatch.chdir(ordinary_user)
    listed = CliRunner().invoke(main, ["models", "list"])
    assert listed.exit_code == 0
    assert places.DEMO_MODEL not in listed.stdout


def test_missing_configuration_that_was_named_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("DICOM_NODE_CONFIG", str(tmp_path / "missing.yaml"))
    listed = CliRunner().invoke(main, ["models", "list"])
    assert listed.exit_code == 1
    assert "missing.yaml" in listed.stderr
