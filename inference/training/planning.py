"""Plans and preprocesses a raw data set with nnU-Net's own classes.

nnU-Net finds its folders through environment variables, read at every use; :func:`nnunet_folders` sets them for a
block of code and its child processes. ``nnUNetv2_plan_and_preprocess`` isn't used because it looks classes up by
importing every module of a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from inference.errors import ModelPackageError, TrainingError
from inference.models.nnunet_folder import check_plans, read_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from inference.training.configuration import TrainingConfiguration

CONFIGURATION = "3d_fullres"
PLANS = "nnUNetPlans"
SPLITS = "splits_final.json"
CASES_OF_ONE_PATIENT = "cases_of_one_patient"
"""In dataset.json of `dicom-node dataset convert`: the ids of the cases of each patient who has several."""
_NNUNET_FOLDS = 5
_DONE = "preprocessed.json"
_COUNTED_EVERY_S = 1.0
_PLANNERS = {
    "ExperimentPlanner": ExperimentPlanner,
    "ResEncUNetPlanner": ResEncUNetPlanner,
    "nnUNetPlannerResEncM": nnUNetPlannerResEncM,
    "nnUNetPlannerResEncL": nnUNetPlannerResEncL,
    "nnUNetPlannerResEncXL": nnUNetPlannerResEncXL,
}


@dataclass(frozen=True, slots=True)
class DataSet:
    """A raw data set: its folder, dataset.json, cases, and the SHA-256 of all training data."""

    folder: Path
    description: dict[str, Any]
    cases: tuple[str, ...]
    sha256: str

    @property
    def name(self) -> str:
        """``Dataset``, three digits, and a word."""
        return self.folder.name


def read_data_set(folder: Path) -> DataSet:
    """Read the description of a raw data set, and hash its files.

    Raises:
        TrainingError: it is not a raw data set for CT, or a case has only an image or only labels.
    """
    description = _read_json(folder / "dataset.json")
    try:
        read_labels(description)
        ending = str(description["file_ending"])
    except (ModelPackageError, KeyError) as error:
        raise TrainingError(f"{folder / 'dataset.json'}: {error}") from error
    images = {path.name.removesuffix(f"_0000{ending}"): path for path in (folder / "imagesTr").glob(f"*_0000{ending}")}
    labels = {path.name.removesuffix(ending): path for path in (folder / "labelsTr").glob(f"*{ending}")}
    odd = sorted(set(images) ^ set(labels))
    if odd or not images:
        raise TrainingError(
            f"{folder} has {len(images)} images in imagesTr and {len(labels)} label maps in labelsTr, expected both of "
            f"every case; exceptions: {', '.join(odd[:5]) or 'there is none'}"
        )
    digest = hashlib.sha256()
    splits = folder / SPLITS
    files = [folder / "dataset.json", *([splits] if splits.is_file() else []), *images.values(), *labels.values()]
    for path in sorted(files):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return DataSet(folder, description, tuple(sorted(images)), digest.hexdigest())


def check_fold(data: DataSet, fold: int | Literal["all"]) -> None:
    """Check that the data set has ``fold``: otherwise nnU-Net would train on its own split and only log it.

    Raises:
        TrainingError: there is no such fold, there are too few cases for nnU-Net's own split into five, or that split
            would divide the cases of a patient.
    """
    if fold == "all":
        return
    splits = data.folder / SPLITS
    if not splits.is_file() and data.description.get(CASES_OF_ONE_PATIENT):
        raise TrainingError(
            f"{data.folder} has no {SPLITS}, and several cases of one patient, which nnU-Net's own folds would divide "
            f"between training and validation; write one that keeps them together, or train on all with `fold: all`"
        )
    if not splits.is_file() and len(data.cases) < _NNUNET_FOLDS:
        raise TrainingError(
            f"{data.folder} has no {SPLITS} and {len(data.cases)} cases, too few for nnU-Net's own {_NNUNET_FOLDS} "
            "folds; `fold: all` trains on all of them"
        )
    folds = len(_read_json(splits)) if splits.is_file() else _NNUNET_FOLDS
    if fold >= folds:
        raise TrainingError(f"{data.folder} has {folds} folds, from 0; there is no fold {fold}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise TrainingError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise TrainingError(f"{path} is not JSON") from error


@contextmanager
def nnunet_folders(raw: Path, work: Path, processes: int) -> Iterator[None]:
    """Make nnU-Net use ``raw`` and folders in ``work``, and draw patches in ``processes`` processes.

    With 0 processes, patches are drawn in this process, which makes a run repeatable.
    """
    values = {
        "nnUNet_raw": str(raw),
        "nnUNet_preprocessed": str(work / "preprocessed"),
        "nnUNet_results": str(work / "results"),
        "nnUNet_n_proc_DA": str(processes),
        "nnUNet_wandb_enabled": "0",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def prepare(
    data: DataSet, configuration: TrainingConfiguration, work: Path, processes: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """Fingerprint, plan and preprocess, unless an earlier run did; returns the plans.

    Call it within :func:`nnunet_folders`. nnU-Net's output goes to ``work/preparation.log``; ``report`` is told what is
    being done and, at each tenth of the cases, how many are preprocessed.

    Raises:
        TrainingError: the plans name classes from outside nnU-Net.
    """
    folder = work / "preprocessed" / data.name
    done = folder / _DONE
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with (work / "preparation.log").open("a") as log, contextlib.redirect_stdout(log):
            report("fingerprint and plan")
            _plan(data, configuration, folder, processes)
            preprocessor = DefaultPreprocessor(verbose=False)
            preprocessor.show_progress_bar = False
            with _counted(folder / f"{PLANS}_{CONFIGURATION}", len(data.cases), report):
                preprocessor.run(data.name, CONFIGURATION, PLANS, processes)
        done.write_text("{}\n")
    plans = _read_json(folder / f"{PLANS}.json")
    try:
        check_plans(plans, CONFIGURATION)
    except ModelPackageError as error:
        raise TrainingError(f"{folder / PLANS}.json: {error}") from error
    return plans


@contextmanager
def _counted(folder: Path, cases: int, report: Callable[[str], None]) -> Iterator[None]:
    """Report how many of the cases are in ``folder``, which nnU-Net tells nobody."""
    ended = threading.Event()

    def count() -> None:
        reported = 0
        while not ended.wait(_COUNTED_EVERY_S):
            finished = sum(1 for _ in folder.glob("*.pkl"))  # the last file of a case
            if 10 * finished // cases > 10 * reported // cases:
                reported = finished
                report(f"preprocess, {finished} of {cases} cases")

    report(f"preprocess, 0 of {cases} cases")
    counting = threading.Thread(target=count, name="preprocessed cases", daemon=True)
    counting.start()
    try:
        yield
    finally:
        ended.set()
        counting.join()


def _plan(data: DataSet, configuration: TrainingConfiguration, folder: Path, processes: int) -> None:
    extractor = DatasetFingerprintExtractor(data.name, processes)
    extractor.show_progress_bar = False
    extractor.run(overwrite_existing=True)
    memory = {} if configuration.gpu_memory_gb is None else {"gpu_memory_target_in_gb": configuration.gpu_memory_gb}
    spacing = None if configuration.spacing_mm is None else [float(configuration.spacing_mm)] * 3
    planner = _PLANNERS[configuration.planner](
        data.name, preprocessor_name="DefaultPreprocessor", plans_name=PLANS, overwrite_target_spacing=spacing, **memory
    )
    planner.plan_experiment()
    # preprocessing other configurations would only cost time, and the chosen one may differ from the plan
    plans = _read_json(folder / f"{PLANS}.json")
    chosen = plans["configurations"][CONFIGURATION]
    plans["configurations"] = {CONFIGURATION: chosen}
    _replace(chosen, configuration)
    (folder / f"{PLANS}.json").write_text(json.dumps(plans, indent=2) + "\n")


def _replace(plan: dict[str, Any], configuration: TrainingConfiguration) -> None:
    if configuration.patch_size is not None:
        plan["patch_size"] = list(configuration.patch_size)
    if configuration.batch_size is not None:
        plan["batch_size"] = configuration.batch_size
    if configuration.features_per_stage is not None and configuration.convolutions_per_stage is not None:
        stages = len(configuration.features_per_stage)
        plan["architecture"]["arch_kwargs"] |= {
            "n_stages": stages,
            "features_per_stage": list(configuration.features_per_stage),
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
            "n_conv_per_stage": list(configuration.convolutions_per_stage),
            "n_conv_per_stage_decoder": [1] * (stages - 1),
        }
