"""From raw data sets to a model package: plan, preprocess and train each, and install them as parts of one model.

All state is in the work folder: ``preprocessed/`` and ``results/`` are nnU-Net's, ``models/`` has the finished models
as nnU-Net model folders, ``training.json`` records what is trained. The same call resumes an interrupted training.

``nnUNetv2_train`` isn't used because it finds the trainer by importing all trainers, which needs torchvision.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.multiprocessing.spawn import spawn

from inference.errors import TrainingError
from inference.models.checkpoint import BOOKKEEPING_TYPES
from inference.models.install import Facts, install_folders
from inference.nnunet.contract import EngineOptions
from inference.nnunet.machine import effective_device, effective_precision, usable_cores
from inference.training.planning import (
    CONFIGURATION,
    PLANS,
    DataSet,
    check_fold,
    nnunet_folders,
    prepare,
    read_data_set,
)
from inference.training.sampled import SampledTrainer
from inference.training.trainer import FINAL, LATEST, NodeTrainer, quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from inference.models.package import ModelPackage
    from inference.training.configuration import TrainingConfiguration

STATE = "training.json"
LOG = "nnunet.log"
_TRAINERS = {"nnunet": NodeTrainer, "sampled": SampledTrainer}


@dataclass(frozen=True, slots=True)
class Machine:
    """What to train on. ``gpus``: how many, if ``device`` is CUDA. ``processes`` draw patches; 0: the training itself,
    which makes a run repeatable.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus: int = 1
    threads: int = 0
    processes: int | None = None
    save_every_s: float = 180.0

    def resolved(self) -> tuple[torch.device, int, int]:
        """The device, and the numbers of threads and of processes.

        Raises:
            InferenceError: CUDA was requested but is not available.
            TrainingError: there are not that many GPUs.
        """
        device = torch.device(effective_device(EngineOptions(device=self.device)))
        cores = usable_cores()
        if device.type == "cpu":
            if self.gpus > 1:
                raise TrainingError(f"{self.gpus} GPUs were requested, but the device is the CPU")
            return device, self.threads or cores, 0 if self.processes is None else self.processes
        if self.gpus > torch.cuda.device_count():
            raise TrainingError(f"{self.gpus} GPUs were requested, but torch finds {torch.cuda.device_count()}")
        return device, self.threads or 1, max(1, cores // self.gpus - 1) if self.processes is None else self.processes


@dataclass(frozen=True, slots=True)
class Progress:
    """Receives progress: ``stage(data_set, stage)`` and, after each epoch, its values."""

    stage: Callable[[str, str], None]
    epoch: Callable[[Mapping[str, float]], None]


def train(
    folders: Sequence[Path],
    configuration: TrainingConfiguration,
    work: Path,
    library: Path,
    machine: Machine,
    progress: Progress,
    *,
    name: str | None = None,
    model_version: str = "1",
) -> ModelPackage:
    """Train on each of the raw data sets ``folders`` and install the result in ``library``.

    A training that is finished in ``work`` is only installed, so that it can be installed again under another name.

    Raises:
        TrainingError: a data set or the state in ``work`` can't be used.
        InferenceError: this machine has no such device.
        ModelPackageError: ``library`` already has a model of that name; the training itself is kept.
    """
    package_name = name or configuration.name
    if (library / package_name).exists():
        raise TrainingError(f"{library} already has a model named {package_name!r}")
    device, threads, processes = machine.resolved()
    with _owned(work):
        data_sets = []
        for folder in folders:
            progress.stage(folder.name, "read")
            data_sets.append(read_data_set(folder.resolve()))
            check_fold(data_sets[-1], configuration.fold)
        _check_state(work, configuration, data_sets)
        finished = []
        for data in data_sets:
            with nnunet_folders(data.folder.parent, work, 1):  # nnU-Net's planner fails with 0 processes
                plans = prepare(data, configuration, work, usable_cores(), partial(progress.stage, data.name))
            progress.stage(data.name, "train")
            with nnunet_folders(data.folder.parent, work, processes):
                torch.set_num_threads(threads)
                if not _is_trained(work, data, configuration):
                    _train_one(data, plans, configuration, work, device, machine, progress)
            progress.stage(data.name, "export")
            finished.append(_export(data, plans, configuration, work))
        facts = Facts(
            name=package_name,
            version=model_version,
            source="dicom-node train",
            licence=configuration.licence,
            intended_use=configuration.intended_use,
            resampling=configuration.resampling,
            window_step=configuration.window_step,
            training=_provenance(configuration, [record for _, record in finished]),
        )
        return install_folders([folder for folder, _ in finished], library, facts)


@contextmanager
def _owned(work: Path) -> Iterator[None]:
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"another process is training in {work}") from None
        yield


def _check_state(work: Path, configuration: TrainingConfiguration, data_sets: Sequence[DataSet]) -> None:
    wanted = {
        "configuration": configuration.described(),
        "data_sets": {data.name: data.sha256 for data in data_sets},
        "nnunetv2": version("nnunetv2"),
    }
    file = work / STATE
    if not file.exists():
        part = file.with_suffix(".partial")
        part.write_text(json.dumps(wanted, indent=2) + "\n")
        part.replace(file)
        return
    try:
        found = json.loads(file.read_text())
    except ValueError:
        raise TrainingError(f"{file} is not JSON") from None
    differing = sorted(key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key])
    if differing:
        raise TrainingError(
            f"{work} contains a training with other {', '.join(differing)}; choose another folder or restore them"
        )


def _results(work: Path, data: DataSet, configuration: TrainingConfiguration) -> Path:
    trainer = _TRAINERS[configuration.trainer].__name__
    return work / "results" / data.name / f"{trainer}__{PLANS}__{CONFIGURATION}" / f"fold_{configuration.fold}"


def _is_trained(work: Path, data: DataSet, configuration: TrainingConfiguration) -> bool:
    return (_results(work, data, configuration) / FINAL).is_file()


def _train_one(
    data: DataSet,
    plans: Mapping[str, Any],
    configuration: TrainingConfiguration,
    work: Path,
    device: torch.device,
    machine: Machine,
    progress: Progress,
) -> None:
    if machine.gpus == 1:
        _run(data, plans, configuration, work, device, machine.save_every_s, progress.epoch)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (machine.gpus, port, data, dict(plans), configuration, work, machine.save_every_s)
    spawn(_run_on_gpu, arguments, machine.gpus)  # type: ignore[no-untyped-call]


def _run_on_gpu(
    rank: int,
    gpus: int,
    port: int,
    data: DataSet,
    plans: Mapping[str, Any],
    configuration: TrainingConfiguration,
    work: Path,
    save_every_s: float,
) -> None:
    """One process of nnU-Net's DistributedDataParallel; the first process writes the files."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", rank=rank, world_size=gpus)
    try:
        _run(data, plans, configuration, work, torch.device("cuda", rank), save_every_s, lambda _: None)
    finally:
        torch.distributed.destroy_process_group()


def _run(
    data: DataSet,
    plans: Mapping[str, Any],
    configuration: TrainingConfiguration,
    work: Path,
    device: torch.device,
    save_every_s: float,
    on_epoch: Callable[[Mapping[str, float]], None],
) -> None:
    latest = _results(work, data, configuration) / LATEST
    with quiet(work / LOG):
        trainer = _trainer(data, plans, configuration, device, save_every_s, on_epoch)
        if latest.is_file():
            trainer.load_checkpoint(str(latest))
        trainer.run_training()


def _trainer(
    data: DataSet,
    plans: Mapping[str, Any],
    configuration: TrainingConfiguration,
    device: torch.device,
    save_every_s: float,
    on_epoch: Callable[[Mapping[str, float]], None],
) -> NodeTrainer:
    trainer = _TRAINERS[configuration.trainer](
        {**plans, "continue_training": False},  # only used by its online logger, which is off
        CONFIGURATION,
        configuration.fold,
        data.description,
        device,
    )
    precision = effective_precision(EngineOptions(device="cuda" if device.type == "cuda" else "cpu"))
    trainer.configure(configuration, on_epoch, mixed=precision == "bfloat16", save_every_s=save_every_s)
    torch.manual_seed(configuration.seed)
    trainer.initialize()
    return trainer


def _export(
    data: DataSet, plans: Mapping[str, Any], configuration: TrainingConfiguration, work: Path
) -> tuple[Path, dict[str, Any]]:
    """Write the model for other programs, under the name of nnU-Net's own trainer; returns it and its record."""
    with (
        (_results(work, data, configuration) / FINAL).open("rb") as file,
        torch.serialization.safe_globals(BOOKKEEPING_TYPES),
    ):
        content = torch.load(file, map_location="cpu", weights_only=True)
    logged = content["logging"]
    weights = content["network_weights"]
    if configuration.half_precision:
        weights = {name: value.half() for name, value in weights.items()}
    trainer = "nnUNetTrainer" if configuration.mirroring else "nnUNetTrainerNoMirroring"
    folder = work / "models" / data.name / f"{trainer}__{PLANS}__{CONFIGURATION}"
    (folder / f"fold_{configuration.fold}").mkdir(parents=True, exist_ok=True)
    (folder / "plans.json").write_text(json.dumps(plans, indent=2) + "\n")
    (folder / "dataset.json").write_text(json.dumps(data.description, indent=2) + "\n")
    torch.save(
        {
            "network_weights": weights,
            "trainer_name": trainer,
            "init_args": {"configuration": CONFIGURATION, "fold": configuration.fold},
            "inference_allowed_mirroring_axes": content["inference_allowed_mirroring_axes"],
            "current_epoch": content["current_epoch"],
        },
        folder / f"fold_{configuration.fold}" / FINAL,
    )
    return folder, _record(data, configuration, work, logged)


def _record(
    data: DataSet, configuration: TrainingConfiguration, work: Path, logged: Mapping[str, Any]
) -> dict[str, Any]:
    splits_file = work / "preprocessed" / data.name / "splits_final.json"
    if configuration.fold == "all":
        split = {"train": list(data.cases), "val": list(data.cases)}
    else:
        split = json.loads(splits_file.read_text())[configuration.fold]
    structures = [name for name, _ in sorted(data.description["labels"].items(), key=lambda each: each[1])][1:]
    dice = [float(value) for value in logged["dice_per_class_or_region"][-1]]
    by_structure = {name: round(value, 4) for name, value in zip(structures, dice, strict=True) if np.isfinite(value)}
    return {
        "data_set": data.name,
        "reference": str(data.description.get("reference", "not stated"))[:500],
        "sha256": data.sha256,
        "resampling": data.description.get("resampling", "not stated"),
        "split": {"fold": configuration.fold, "training": sorted(split["train"]), "validation": sorted(split["val"])},
        "metrics": {
            "measured": "nnU-Net's pseudo Dice: random patches of the validation cases in the last epoch",
            "epochs": len(logged["train_losses"]),
            "training_loss": round(float(logged["train_losses"][-1]), 5),
            "validation_loss": round(float(logged["val_losses"][-1]), 5),
            "patch_dice": round(float(np.nanmean(dice)), 4),
            "patch_dice_by_structure": by_structure,
        },
    }


def _provenance(configuration: TrainingConfiguration, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    packages = ("nnunetv2", "torch", "batchgenerators", "batchgeneratorsv2", "dynamic-network-architectures", "numpy")
    return {
        "configuration": configuration.described(),
        "software": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "parts": list(records),
    }
