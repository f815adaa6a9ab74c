"""Trains the demo model for all 104 structures on synthetic patients, on two CPU cores in about an hour.

    python -m inference.training.demo_model --cases CASES --output MODEL --library MODELS

Writes an nnU-Net model folder, for other programs, and installs the same model as a package, for the node.

Choices and reasons:

* PlainConvUNet of nnU-Net v2 (built by nnunetv2's ``get_network_from_plans``) at 5 mm isotropic: a patch of
  128 x 64 x 96 voxels covers two thirds of a body, enough context to tell the sixth rib from the seventh.
* bfloat16 autocast: takes a third of the time on a CPU that supports it.
* The last 1 x 1 x 1 convolution and the loss see only a sample of the voxels (:mod:`inference.training.patches`).
* AdamW, one warm-up and one cosine over a *time budget*, so that training takes the planned time on any machine; the
  saved weights are an exponential moving average.
* No mirroring: left and right are different structures.

Training can be stopped at any time and continued with the same command; it saves its state every few minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from inference.models.install import Facts, install_folders
from inference.structures import paper_labels
from inference.training.cases import FIRST_TRAINING_SEED, Case, load_case, make_cases
from inference.training.loss import sampled_loss
from inference.training.nnunet_folder import Design, Intensities, dataset, plans, write_folder
from inference.training.patches import Patch, draw_patch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from inference.models.package import ModelPackage

MODEL_NAME = "Dataset904_PhantomDemo104_NotForClinicalUse"
TRAINER_NAME = "phantomDemoTrainerNoMirroring"
DESCRIPTION = (
    "Demonstration only. Trained on synthetic phantoms, never on a patient; its output on a real CT has no meaning."
)
INTENDED_USE = "Demonstration only - trained on synthetic phantoms, not for clinical use"
DEMO_DESIGN = Design(
    spacing_mm=5.0,
    patch_size_zyx=(128, 64, 96),
    features_per_stage=(16, 48, 96, 160, 224),
    convolutions_per_stage=(1, 2, 2, 2, 2),
)
STATE_EVERY_S = 240.0
REPORT_EVERY_STEPS = 20


@dataclass(frozen=True, slots=True)
class Schedule:
    """Duration and learning rates. Training ends at the first of the two limits."""

    minutes: float
    steps: int = 1_000_000
    peak_learning_rate: float = 2.5e-3
    warm_up_fraction: float = 0.04
    weight_decay: float = 1e-4
    averaging: float = 0.995

    def progress(self, elapsed_s: float, step: int) -> float:
        """Finished fraction of the training, 0..1."""
        return min(1.0, max(elapsed_s / (60.0 * self.minutes), step / self.steps))

    def learning_rate(self, progress: float) -> float:
        """Linear warm-up, then a cosine down to nearly 0."""
        if progress < self.warm_up_fraction:
            return self.peak_learning_rate * (0.05 + 0.95 * progress / self.warm_up_fraction)
        falling = (progress - self.warm_up_fraction) / (1 - self.warm_up_fraction)
        return self.peak_learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling)))


class Training:
    """A network, its optimiser and the running average of its weights; can be saved and resumed."""

    def __init__(self, design: Design, classes: int, schedule: Schedule, random_seed: int) -> None:
        torch.manual_seed(random_seed)
        self.design, self.schedule = design, schedule
        architecture = design.architecture()
        self.network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            1,
            classes,
            deep_supervision=False,
        )
        # the last convolution runs on sampled voxels only, so it is removed from the forward pass
        self._head = self.network.decoder.seg_layers[-1]
        self._without_head = torch.nn.Identity()
        self.average = {key: value.clone() for key, value in self.network.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=schedule.peak_learning_rate, weight_decay=schedule.weight_decay
        )
        self.step, self.elapsed_s = 0, 0.0

    @property
    def progress(self) -> float:
        """Finished fraction, 0..1."""
        return self.schedule.progress(self.elapsed_s, self.step)

    def learn(self, patch: Patch) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """Do one optimisation step; returns the loss and, per class, intersection and sum of both sets."""
        started = time.monotonic()
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.learning_rate(self.progress)
        image = torch.from_numpy(patch.normalised_zyx)[None, None]
        self.network.train()
        self.network.decoder.seg_layers[-1] = self._without_head
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                features = self.network(image)
        finally:
            self.network.decoder.seg_layers[-1] = self._head
        channels = features.shape[1]
        chosen = features.reshape(channels, -1)[:, torch.from_numpy(patch.voxels)].T.float()
        scores = torch.nn.functional.linear(chosen, self._head.weight.reshape(-1, channels), self._head.bias)
        loss, overlap, both = sampled_loss(scores, torch.from_numpy(patch.labels), torch.from_numpy(patch.weights))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12.0)
        self.optimiser.step()
        self.step += 1
        self._update_average()
        self.elapsed_s += time.monotonic() - started
        return float(loss.detach()), overlap.double().numpy(), both.double().numpy()

    def _update_average(self) -> None:
        keep = min(self.schedule.averaging, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.network.state_dict().items():
                self.average[key].lerp_(value, 1 - keep)

    def save(self, file: Path) -> None:
        """Save everything needed to resume."""
        partial = file.with_suffix(".partial")
        torch.save(
            {
                "network": self.network.state_dict(),
                "average": self.average,
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "elapsed_s": self.elapsed_s,
            },
            partial,
        )
        partial.replace(file)

    def resume(self, file: Path) -> None:
        """Resume from a file of :meth:`save`."""
        state = torch.load(file, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.step, self.elapsed_s = state["average"], state["step"], state["elapsed_s"]


def measure_intensities(cases: Sequence[Case]) -> Intensities:
    """Statistics of the labelled voxels, as in nnU-Net's fingerprint extraction."""
    rng = np.random.default_rng(0)
    samples = []
    for case in cases:
        foreground = case.hu_zyx[case.labels_zyx > 0]
        samples.append(rng.choice(foreground, min(10_000, len(foreground)), replace=False))
    values = np.concatenate(samples).astype(np.float64)
    return Intensities(
        mean=float(values.mean()),
        median=float(np.median(values)),
        std=float(values.std()),
        min=float(values.min()),
        max=float(values.max()),
        percentile_00_5=float(np.percentile(values, 0.5)),
        percentile_99_5=float(np.percentile(values, 99.5)),
    )


def train(
    cases: Sequence[Case],
    *,
    output: Path,
    state_file: Path,
    design: Design,
    schedule: Schedule,
    report: Callable[[dict[str, Any]], None],
    random_seed: int = 0,
) -> None:
    """Train until the schedule ends and write the model folder ``output`` (also whenever the state is saved)."""
    names = paper_labels()
    intensities = measure_intensities(cases[: min(len(cases), 40)])
    shapes = np.array([case.labels_zyx.shape for case in cases])
    depth, height, width = (int(n) for n in np.median(shapes, axis=0))
    plans_json = plans(MODEL_NAME, design, intensities, (depth, height, width))
    dataset_json = dataset(MODEL_NAME, names, len(cases), DESCRIPTION)
    training = Training(design, max(names) + 1, schedule, random_seed)
    if state_file.exists():
        training.resume(state_file)
    rng = np.random.default_rng([random_seed, training.step])

    def draw() -> Patch:
        case = cases[int(rng.integers(len(cases)))]
        return draw_patch(case, design.patch_size_zyx, design.spacing_mm, intensities, rng)

    def write() -> None:
        training.save(state_file)
        write_folder(
            output,
            plans_json,
            dataset_json,
            training.average,
            trainer_name=TRAINER_NAME,
            steps=training.step,
        )

    losses: list[float] = []
    overlap = np.zeros(max(names) + 1)
    both = np.zeros(max(names) + 1)
    saved = time.monotonic()
    with ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(draw)
        while training.progress < 1.0:
            patch = upcoming.result()
            upcoming = ahead.submit(draw)
            loss, step_overlap, step_both = training.learn(patch)
            losses.append(loss)
            overlap = 0.97 * overlap + step_overlap
            both = 0.97 * both + step_both
            if training.step % REPORT_EVERY_STEPS == 0:
                report(_state_of(training, losses, 2 * overlap / np.maximum(both, 1e-6)))
                losses.clear()
            if time.monotonic() - saved > STATE_EVERY_S:
                write()
                saved = time.monotonic()
    write()


def _state_of(training: Training, losses: Sequence[float], dice: NDArray[np.float64]) -> dict[str, Any]:
    foreground = dice[1:]
    remaining = training.elapsed_s / max(training.progress, 1e-6) * (1 - training.progress)
    return {
        "step": training.step,
        "minutes": round(training.elapsed_s / 60, 1),
        "minutes_left": round(remaining / 60, 1),
        "seconds_per_step": round(training.elapsed_s / training.step, 2),
        "loss": round(float(np.mean(losses)), 4),
        "soft_dice": round(float(foreground.mean()), 4),
        "soft_dice_vertebrae": round(float(foreground[17:41].mean()), 4),
        "soft_dice_ribs": round(float(foreground[57:81].mean()), 4),
        "structures_below_0.4": int((foreground < 0.4).sum()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(
        "python -m inference.training.demo_model", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--cases", type=Path, required=True, help="folder for the training cases (made if missing)")
    parser.add_argument("--output", type=Path, required=True, help="nnU-Net v2 model folder to write")
    parser.add_argument("--library", type=Path, required=True, help="model library to install the package into")
    parser.add_argument("--name", default="phantom_demo_104", help="name of the package")
    parser.add_argument("--count", type=int, default=300, help="number of training cases")
    parser.add_argument("--minutes", type=float, default=65.0, help="time budget for training, in minutes")
    parser.add_argument("--peak-learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    if (options.library / options.name).exists():
        parser.error(f"{options.library} already has a model named {options.name!r}")
    torch.set_num_threads(options.threads)
    files = make_cases(options.cases, options.count, DEMO_DESIGN.spacing_mm, options.threads)
    schedule = Schedule(minutes=options.minutes, peak_learning_rate=options.peak_learning_rate)
    print(json.dumps({"cases": len(files), "first_seed": FIRST_TRAINING_SEED, **asdict(schedule)}), flush=True)
    train(
        [load_case(file) for file in files],
        output=options.output,
        state_file=options.cases / "training_state.pt",
        design=DEMO_DESIGN,
        schedule=schedule,
        report=lambda state: print(json.dumps(state), flush=True),
    )
    print(install_demo_model(options.output, options.library, options.name).identity.digest)


def install_demo_model(output: Path, library: Path, name: str) -> ModelPackage:
    """Install the model that :func:`train` wrote to ``output``."""
    return install_folders(
        [output],
        library,
        Facts(
            name=name,
            source="dicom-node train",
            licence="Apache-2.0",
            intended_use=INTENDED_USE,
            labels=paper_labels(),
            resampling="corners",
        ),
    )


if __name__ == "__main__":
    main()
