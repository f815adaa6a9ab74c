"""Training configurations: the shipped ones can be read, and errors in a file are named."""

from pathlib import Path

import pytest
import yaml

from inference.errors import TrainingError
from inference.training.configuration import configuration_of, read_configuration

SHIPPED = sorted((Path(__file__).parents[3] / "config" / "training").glob("*.yaml"))
SMALL = {"name": "x", "epochs": 2, "iterations_per_epoch": 3, "validation_iterations": 1, "seed": 0}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_can_be_read(path):
    found = read_configuration(path)
    assert found.mirroring is False
    written = yaml.safe_load(path.read_text())
    assert {key: found.described()[key] for key in written} == written


def test_seven_are_shipped():
    assert len(SHIPPED) == 7


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epoch": 3}, r"unknown settings \['epoch'\]"),
        ({"epochs": 0}, "epochs is 0, expected a whole number from 1 to 100000"),
        ({"epochs": True}, "epochs is True"),
        ({"epochs": 2.5}, "epochs is 2.5"),
        ({"learning_rate": "high"}, "learning_rate is 'high'"),
        ({"planner": "os.system"}, "planner is 'os.system', expected one of ExperimentPlanner"),
        ({"trainer": "sampled", "mirroring": True}, "never mirrors"),
        ({"mirroring": 1}, "mirroring is 1"),
        ({"patch_size": [64, 64]}, "patch_size is"),
        ({"features_per_stage": [8, 16]}, "only be given together"),
        ({"fold": "0"}, "fold is '0'"),
    ],
)
def test_invalid_settings_are_named(wrong, said):
    with pytest.raises(TrainingError, match=said):
        configuration_of(SMALL | wrong)


def test_missing_setting_is_named():
    with pytest.raises(TrainingError, match=r"missing settings \['seed'\]"):
        configuration_of({key: value for key, value in SMALL.items() if key != "seed"})


def test_file_that_is_not_a_mapping_is_refused(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(TrainingError, match="is not YAML"):
        read_configuration(file)
