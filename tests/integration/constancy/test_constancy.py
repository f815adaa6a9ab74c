"""dicom-node constancy with small real networks: unchanged, changed, and with everything that may be damaged."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import structlog
import yaml
from click.testing import CliRunner

from dicom_node.app.check import run_checks
from dicom_node.app.stores import open_store
from dicom_node.app.working import open_pipeline
from dicom_node.cli import main
from dicom_node.constancy.baseline import Limits, described, last_check, read_baseline, write_baseline
from dicom_node.constancy.run import Plan, accept, check
from dicom_node.constancy.scheduled import Scheduled
from dicom_node.constancy.subject import Subject, model_of_library
from dicom_node.dataset.files import sha256_of
from dicom_node.errors import ConfigurationError
from dicom_node.labelmaps.nifti_files import read_label_file
from dicom_node.nifti import grid_of, read_volume, write_labels
from dicom_node.route.rules_file import load_rules
from dicom_node.settings import load_settings
from dicom_node.store.states import JobState
from dicom_node.work.pool import WorkerPool
from inference.nnunet.contract import EngineOptions
from tests.support.nnunet_models import plans, random_package
from tests.support.received_series import receive

OPTIONS = ("--backend", "torch", "--device", "cpu", "--threads", "1")
SMALL = ("--phantoms", "1", "--field-of-view", "chest")


def nothing(*_):
    pass


def call(*arguments, code=0):
    done = CliRunner().invoke(main, ["constancy", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


def checked(model, baseline, *more, code=0):
    return json.loads(call(model, "--baseline", baseline, *OPTIONS, *more, "--json", code=code))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two packages of one name and version with other weights."""
    folder = tmp_path_factory.mktemp("models")
    return [
        random_package(folder / name, folds=(seed,), described=plans(spacing=(8.0, 8.0, 8.0))).folder
        for name, seed in (("old", 3), ("new", 6))
    ]


@pytest.fixture(scope="module")
def accepted(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("accepted") / "test"
    call(models[0], "--accept", "--baseline", folder, *OPTIONS, *SMALL, "--spacing", 8, 8, 8)
    return folder


@pytest.fixture
def baseline(accepted, tmp_path):
    return shutil.copytree(accepted, tmp_path / "test")


def subject(folder):
    return model_of_library(str(folder), folder.parent, EngineOptions(device="cpu", backend="torch", threads=1))


def test_an_unchanged_model_has_not_drifted(models, baseline):
    result = checked(models[0], baseline)
    assert (result["drifted"], result["identical"], result["lowest_dice"]) == (False, 1, 1.0)
    assert result["changes"] == result["exceeded"] == []
    assert len(result["structures"]) == 3
    assert last_check(baseline)["checked_at"] == result["checked_at"]


def test_what_was_accepted_is_what_other_programs_read_in_the_files(baseline):
    (phantom,) = read_baseline(baseline).phantoms
    ct, labels, truth = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(baseline / phantom.id / f"{name}.nii.gz")))
        for name in ("ct", "labels", "truth")
    )
    assert ct.shape == labels.shape == truth.shape
    for label, each in enumerate(phantom.structures, start=1):
        found = labels == label
        assert each.volume_ml == pytest.approx(found.sum() * 0.512)
        assert each.mean_hu == pytest.approx(ct[found].mean())
        number = {"liver": 5, "spleen": 1, "aorta": 7}[each.name]
        overlap = 2 * (found & (truth == number)).sum() / (found.sum() + (truth == number).sum())
        assert each.dice == pytest.approx(overlap)


def test_another_model_of_the_same_name_is_named_as_the_cause(models, baseline):
    before, now = (json.loads((model / "manifest.json").read_text())["digest"] for model in models)
    result = checked(models[1], baseline, code=3)
    assert result["drifted"]
    assert result["changes"][0]["what"] == "digest of the model"
    assert "not the model that was accepted" in result["conclusion"]
    assert before[:12] in result["conclusion"]
    assert now[:12] in result["conclusion"]
    assert result["exceeded"]


def test_an_option_that_may_change_the_answer_is_named_as_the_cause(models, baseline):
    """Even where the answer is the same, as on processors without bfloat16: results of the two have other UIDs."""
    result = checked(models[0], baseline, "--precision", "float32", code=3)
    assert result["changes"][0]["what"] == "version and options of the model"
    assert "float32" in result["changes"][0]["now"]
    assert result["exceeded"] == []


def test_another_answer_of_the_same_model_is_drift_with_its_numbers(models, baseline):
    """The weights of the second under the identity of the first: as if a library computed otherwise."""
    old, new = map(subject, models)
    result = check(Subject(old.identity, new.segment), baseline, nothing)
    assert result.drifted
    assert not result.is_other_model
    assert "Nothing that is recorded has changed" in result.conclusion
    (phantom,) = read_baseline(baseline).phantoms
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(baseline / phantom.id / "labels.nii.gz")))

    now = new.segment(read_volume(baseline / phantom.id / "ct.nii.gz")[0]).labels_zyx
    for label, each in enumerate(result.structures, start=1):
        a, b = labels == label, now == label
        assert each.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
        assert each.found.volume_ml == pytest.approx(b.sum() * 0.512)


def test_conditions_that_changed_are_named_and_are_no_drift_by_themselves(models, baseline):
    kept = read_baseline(baseline)
    write_baseline(baseline, replace(kept, conditions=replace(kept.conditions, nvidia_driver="550.54.14")))
    result = checked(models[0], baseline)
    assert [each["what"] for each in result["changes"]] == ["nvidia driver"]
    assert "No drift" in result["conclusion"]
    assert "550.54.14" in result["conclusion"]
    old, new = map(subject, models)
    drifted = check(Subject(old.identity, new.segment), baseline, nothing)
    assert "550.54.14" in drifted.conclusion


def test_limits_are_those_of_the_acceptance(models, tmp_path):
    folder = tmp_path / "loose"
    old, new = map(subject, models)
    loose = Limits(lowest_dice=0.0, volume_percent=1e6, mean_hu=1e6)
    accept(old, folder, Plan(1, (8.0, 8.0, 8.0), "chest"), loose, nothing)
    result = check(Subject(old.identity, new.segment), folder, nothing)
    assert result.lowest_dice < 0.9
    assert not result.drifted


# ---- what is damaged or missing


def cut(folder):
    path = folder / "phantom-0001" / "labels.nii.gz"
    path.write_bytes(path.read_bytes()[:-10])


def edit(folder):
    path = folder / "baseline.json"
    path.write_text(path.read_text().replace('"volume_ml": ', '"volume_ml": 1'))


def other_format(folder):
    path = folder / "baseline.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "damaged: phantom-0001/labels.nii.gz has the SHA-256"),
        (lambda folder: (folder / "phantom-0001" / "ct.nii.gz").unlink(), "phantom-0001/ct.nii.gz can't be read"),
        (edit, "damaged: baseline.json was changed"),
        (other_format, "has format 2, expected 1"),
        (lambda folder: (folder / "baseline.json").write_text("{"), "baseline.json is not what was written"),
        (lambda folder: (folder / "baseline.json").write_text("[]"), "baseline.json is not what was written"),
        (lambda folder: (folder / "baseline.json").unlink(), "so there is nothing to compare with"),
    ],
)
def test_a_damaged_or_missing_baseline_is_said_to_be_so(models, baseline, damage, message):
    damage(baseline)
    output = call(models[0], "--baseline", baseline, *OPTIONS, code=1)
    assert message in output
    assert "--accept" in output


def test_an_accepted_answer_is_replaced_only_on_request(models, baseline):
    output = call(models[1], "--accept", "--baseline", baseline, *OPTIONS, *SMALL, "--spacing", 8, 8, 8, code=1)
    assert "already has a baseline" in output
    call(models[1], "--accept", "--replace", "--baseline", baseline, *OPTIONS, *SMALL, "--spacing", 8, 8, 8)
    assert not checked(models[1], baseline)["drifted"]
    assert [each.name for each in baseline.parent.iterdir()] == ["test"]


def test_an_acceptance_that_fails_leaves_the_earlier_one(models, baseline):
    def refuse(_):
        raise ConfigurationError("no")

    with pytest.raises(ConfigurationError):
        accept(Subject(subject(models[0]).identity, refuse), baseline, Plan(1), Limits(), nothing, replace=True)
    assert not checked(models[0], baseline)["drifted"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--spacing", 3, 3, 3), "--spacing has no meaning for a check"),
        (("--phantoms", 2), "--phantoms has no meaning for a check"),
        (("--accept", "--kernels", "soft"), "--kernels has no meaning for --accept"),
        (("--vary", "out", "--replace"), "--replace has no meaning for --vary"),
        (("--vary", "out", "--accept"), "exclude each other"),
        (("--accept", "--spacing", 0, 3, 3), "spacing must be positive"),
        (("--vary", "out", "--thickness", "thin"), "thin"),
        (("--vary", "out", "--thickness", "1,500"), "up to 20 mm"),
        (("--vary", "out", "--thickness", "2.5"), "must be a multiple of 1 mm"),
        (("--vary", "out", "--kernels", "blunt"), "no kernel is called blunt"),
    ],
)
def test_an_option_without_meaning_is_refused(models, options, message):
    assert message in call(models[0], *options, code=2)


# ---- uncertainty


def test_the_uncertainty_follows_from_the_scans(models, tmp_path):
    more = ("--phantoms", 2, "--field-of-view", "head_neck", "--thickness", "3,6", "--kernels", "soft")
    printed = json.loads(call(models[0], "--vary", tmp_path, *more, *OPTIONS, "--json"))
    with (tmp_path / "scans.csv").open() as file:
        scans = list(csv.DictReader(file))
    assert len(scans) == 2 * 2 * 3
    assert {(each["thickness_mm"], each["kernel"]) for each in scans} == {("3.0", "soft"), ("6.0", "soft")}
    assert printed["structures"] or printed["left_out"]
    for row in printed["structures"]:
        own = [each for each in scans if each["structure"] == row["structure"]]
        by_phantom = {
            each["phantom"]: [float(scan["volume_ml"]) for scan in own if scan["phantom"] == each["phantom"]]
            for each in own
        }
        cut_off = {each["phantom"] for each in own if each["truncated"] == "True"}
        whole = [volumes for phantom, volumes in by_phantom.items() if phantom not in cut_off]
        assert row["phantoms"] == len(whole)
        assert row["sd_ml"] == pytest.approx(statistics.mean(map(statistics.variance, whole)) ** 0.5)
    page = (tmp_path / "uncertainty.html").read_text()
    assert json.loads((models[0] / "manifest.json").read_text())["digest"] in page
    assert "not a medical device" in page


# ---- in the node


class Node:
    """A node whose model `tissue` is accepted and checked."""

    def __init__(self, folder):
        settings = {
            "node": {"data_folder": "data"},
            "completion": {"regular_quiet_s": 0, "otherwise_quiet_s": 0},
            "models": {"tissue": {"kind": "tissue"}},
            "constancy": {"models": ["tissue"], "every_days": 7},
        }
        self.file = folder / "node.yaml"
        self.file.write_text(yaml.safe_dump(settings))
        (folder / "rules.yaml").write_text("rules: [{name: all, model: tissue, when: []}]")
        self.settings = load_settings(self.file)
        self.spool, self.ledger = open_store(self.settings)
        self.workers = WorkerPool(self.settings.models, self.settings.work)
        self.folder = self.settings.constancy_folder / "tissue"
        self.stop = threading.Event()

    def accept(self):
        arguments = ["--config", self.file, "constancy", "tissue", "--accept", *SMALL, "--spacing", 8, 8, 8]
        done = CliRunner().invoke(main, list(map(str, arguments)))
        assert done.exit_code == 0, done.output

    def look(self, scheduled=None):
        """The log of one look by a process that has just started, or by ``scheduled``."""
        structlog.reset_defaults()  # the commands log warnings only
        with structlog.testing.capture_logs() as log:
            scheduled = scheduled or Scheduled(self.settings, self.ledger, self.workers, self.stop)
            scheduled._log = structlog.get_logger()
            scheduled.check_due()
        return [each for each in log if each["event"].startswith("constancy")]

    def accepted_long_ago(self, baseline=None):
        long_ago = (datetime.now(UTC) - timedelta(days=8)).isoformat(timespec="seconds")
        write_baseline(self.folder, replace(baseline or read_baseline(self.folder), accepted_at=long_ago))


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path)
    yield made
    made.workers.close()
    made.ledger.close()


def test_the_node_checks_what_is_due_and_nothing_else(node):
    node.accept()
    assert node.look() == []
    node.accepted_long_ago()
    (line,) = node.look()
    assert (line["event"], line["log_level"], line["model"]) == ("constancy.checked", "info", "tissue")
    assert node.look() == []
    assert last_check(node.folder)["identical"] == 1


def test_a_changed_library_or_driver_is_a_reason_to_check_at_once(node):
    node.accept()
    baseline = read_baseline(node.folder)
    write_baseline(node.folder, replace(baseline, conditions=replace(baseline.conditions, libraries="numpy 1")))
    scheduled = Scheduled(node.settings, node.ledger, node.workers, node.stop)
    (line,) = node.look(scheduled)
    assert line["event"] == "constancy.checked"
    assert "numpy 1" in line["conclusion"]
    assert node.look(scheduled) == node.look() == []


def test_drift_is_an_error_in_the_log(node):
    node.accept()
    baseline = read_baseline(node.folder)
    (phantom,) = baseline.phantoms
    path = node.folder / phantom.id / "labels.nii.gz"
    kept = read_label_file(path)
    moved = np.roll(kept.labels_zyx, 2, axis=2)  # as if the model had once found everything 16 mm away
    write_labels(path, moved, grid_of(kept.geometry), kept.names_by_label, "")
    files = {**phantom.files, path.name: sha256_of(path)}
    phantom = replace(phantom, labels_sha256="0" * 64, files=files)
    node.accepted_long_ago(replace(baseline, phantoms=(phantom,)))
    (line,) = node.look()
    assert (line["event"], line["log_level"]) == ("constancy.drifted", "error")
    assert line["exceeded"] == 4
    assert last_check(node.folder)["drifted"]


def test_a_job_goes_first(node, tmp_path):
    node.accept()
    node.accepted_long_ago()
    receive(node.spool, node.ledger, tmp_path / "ct", 1)
    rules = load_rules(node.settings.rules_file, node.settings)
    pipeline = open_pipeline(node.settings, node.ledger, node.spool, rules, node.workers)
    pipeline.completing.complete_due()
    pipeline.routing.route_complete()
    assert node.ledger.overview.counts().jobs[JobState.QUEUED] == 1
    (line,) = node.look()
    assert (line["event"], line["log_level"], line["days"]) == ("constancy.overdue", "warning", 1)
    assert last_check(node.folder) is None
    assert pipeline.running.run_next_job()
    (line,) = node.look()
    assert line["event"] == "constancy.checked"


def test_a_model_that_was_never_accepted_is_an_error_in_the_log(node):
    (line,) = node.look()
    assert (line["event"], line["log_level"]) == ("constancy.failed", "error")
    assert "--accept" in line["reason"]


def test_a_node_that_stops_ends_the_check(node):
    node.accept()
    node.accepted_long_ago()
    scheduled = Scheduled(node.settings, node.ledger, node.workers, node.stop)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scheduled, "_is_idle", lambda: node.stop.set() or True)
        assert node.look(scheduled) == []
    assert last_check(node.folder) is None


def test_a_model_that_is_not_configured_is_refused(tmp_path):
    (tmp_path / "node.yaml").write_text("constancy: {models: [tisue]}\nmodels: {tissue: {kind: tissue}}\n")
    with pytest.raises(ConfigurationError, match=r"constancy\.models\[0\]: unknown model 'tisue' .*'tissue'"):
        load_settings(tmp_path / "node.yaml")


def test_check_finds_a_scheduled_model_without_an_accepted_answer_or_with_a_damaged_one(node):
    def finding():
        return next(each for each in run_checks(node.file, described) if each.name == "constancy of tissue")

    missing = finding()
    assert not missing.ok
    assert missing.detail.startswith(f"{node.folder} has no baseline.json, so there is nothing to compare with; accept")
    node.accept()
    accepted = finding()
    assert accepted.ok
    assert accepted.detail.startswith("tissue ")
    assert read_baseline(node.folder).accepted_at in accepted.detail
    cut(node.folder)
    assert not finding().ok
