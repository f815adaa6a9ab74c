"""nnU-Net's trainer without mirroring, with checkpoints that are safe to load and survive a kill.

What differs from ``nnUNetTrainer``, and why:

* It loads its own checkpoints with ``weights_only=True``; nnU-Net's ``load_checkpoint`` executes code in the file.
** A checkpoint is written under a temporary name and renamed, so that a kill never leaves a partial one. It is written
  at the end of an epoch, once the last one is ``save_every_s`` old.
** Random numbers are seeded again in each epoch. If patches are drawn in this process, a resumed training therefore
  continues as if it had never been interrupted; with other processes, the order of patches depends on timing.
** On a CPU with bfloat16 arithmetic, the network runs in bfloat16; the loss is computed in 32 bits.
** Curves are a small plot and a CSV file.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from inference.errors import TrainingError
from inference.models.checkpoint import BOOKKEEPING_TYPES
from inference.training.curves import write_curves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from inference.training.configuration import TrainingConfiguration

LATEST, FINAL = "checkpoint_latest.pth", "checkpoint_final.pth"
CURVES, PICTURE = "curves.csv", "curves.png"
_GRADIENT_NORM = 12.0


class NodeTrainer(nnUNetTrainer):  # type: ignore[misc] # nnU-Net has no types
    """See the module docstring. Created by :func:`make_trainer`."""

    configuration: TrainingConfiguration
    mixed: bool
    save_every_s: float
    on_epoch: Callable[[Mapping[str, float]], None]
    _saved = 0.0
    _iteration = 0
    """Values of this epoch."""

    def configure(
        self,
        configuration: TrainingConfiguration,
        on_epoch: Callable[[Mapping[str, float]], None],
        *,
        mixed: bool,
        save_every_s: float,
    ) -> None:
        """Set what nnU-Net stores as attributes; call it before ``initialize``."""
        self.configuration, self.on_epoch, self.mixed, self.save_every_s = configuration, on_epoch, mixed, save_every_s
        self.num_epochs = configuration.epochs
        self.num_iterations_per_epoch = configuration.iterations_per_epoch
        self.num_val_iterations_per_epoch = configuration.validation_iterations
        self.initial_lr, self.weight_decay = configuration.learning_rate, configuration.weight_decay
        self.logger.plot_progress_png = self._write_curves  # nnU-Net's plot takes seconds in every epoch

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802 - nnU-Net's name
        """Mirror neither in training nor in inference, unless the configuration says so: left is not right."""
        rotation, dummy_2d, patch_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.configuration.mirroring:
            axes = self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, patch_size, axes

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Write to nnU-Net's log file only."""
        del also_print_to_console
        super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)

    def on_train_start(self) -> None:
        """Start the clock for checkpoints."""
        super().on_train_start()
        self._saved = time.monotonic()

    def on_epoch_start(self) -> None:
        """Seed all random numbers from seed, epoch and GPU."""
        seed = np.random.SeedSequence([self.configuration.seed, self.current_epoch, self.local_rank])
        numpy_seed, torch_seed, python_seed = (int(each) for each in seed.generate_state(3))
        np.random.seed(numpy_seed)  # noqa: NPY002 - nnU-Net draws from the global generators
        torch.manual_seed(torch_seed)
        random.seed(python_seed)
        self._iteration = 0
        super().on_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do one optimiser step like nnU-Net, but in bfloat16 on a CPU."""
        data, target = self._on_device(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._training_loss(data, target)
        if self.grad_scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_NORM)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        self._iteration += 1
        return {"loss": loss.detach().cpu().numpy()}

    def _training_loss(self, data: torch.Tensor, target: Any) -> torch.Tensor:
        with self.reduced_precision():
            output = self.network(data)
        full = [each.float() for each in output] if isinstance(output, list | tuple) else output.float()
        found: torch.Tensor = self.loss(full, target)
        return found

    def _on_device(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, Any]:
        data, target = batch["data"].to(self.device, non_blocking=True), batch["target"]
        if isinstance(target, list):
            return data, [each.to(self.device, non_blocking=True) for each in target]
        return data, target.to(self.device, non_blocking=True)

    def reduced_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Float16 on CUDA, bfloat16 on a CPU that has it."""
        if self.device.type == "cuda":
            return torch.autocast("cuda")
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.mixed)

    def on_epoch_end(self) -> None:
        """Let nnU-Net log the epoch; then save, and report."""
        self.save_every = self.num_epochs + 1  # by time, below
        super().on_epoch_end()
        if time.monotonic() - self._saved >= self.save_every_s and self.current_epoch < self.num_epochs:
            self.current_epoch -= 1  # save_checkpoint adds 1, which is already counted
            self.save_checkpoint(str(Path(self.output_folder) / LATEST))
            self.current_epoch += 1
            self._saved = time.monotonic()
        if self.local_rank == 0:
            self.on_epoch(self.last_epoch())

    def last_epoch(self) -> dict[str, float]:
        """Number, losses, Dice, learning rate and seconds of the last epoch."""
        logged = self.logger.get_value
        began, ended = logged("epoch_start_timestamps", -1), logged("epoch_end_timestamps", -1)
        return {
            "epoch": self.current_epoch,
            "epochs": self.num_epochs,
            "iterations": self.current_epoch * self.num_iterations_per_epoch,
            "training_loss": float(logged("train_losses", -1)),
            "validation_loss": float(logged("val_losses", -1)),
            "patch_dice": float(logged("mean_fg_dice", -1)),
            "learning_rate": float(logged("lrs", -1)),
            "seconds": float(ended - began),
        }

    def _write_curves(self, folder: str) -> None:
        logged = {key: self.logger.get_value(key, None) for key in self.logger.get_checkpoint()}
        write_curves(logged, self.num_iterations_per_epoch, Path(folder) / CURVES, Path(folder) / PICTURE)

    def plot_network_architecture(self) -> None:
        """Draw nothing: the library for it is not installed, and plans.json describes the network."""

    def bare_network(self) -> torch.nn.Module:
        """The network without the wrappers of DistributedDataParallel and torch.compile."""
        network = self.network.module if self.is_ddp else self.network
        bare: torch.nn.Module = getattr(network, "_orig_mod", network)
        return bare

    def further_state(self) -> dict[str, Any]:
        """State that a subclass saves in addition to nnU-Net's."""
        return {}

    def load_further_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state saved by :meth:`further_state`."""

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's entries atomically."""
        if self.local_rank != 0:
            return
        content = {
            "network_weights": self.bare_network().state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "further_state": self.further_state(),
        }
        part = Path(f"{filename}.partial")
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(filename)

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Resume from a checkpoint written by :meth:`save_checkpoint`.

        Raises:
            TrainingError: it is damaged, contains anything but numbers and text, or belongs to another network.
        """
        if not self.was_initialized:
            self.initialize()
        try:
            with torch.serialization.safe_globals(BOOKKEEPING_TYPES):
                content = torch.load(filename_or_checkpoint, map_location=self.device, weights_only=True)
            self.bare_network().load_state_dict(content["network_weights"])
            self.optimizer.load_state_dict(content["optimizer_state"])
            if self.grad_scaler is not None and content["grad_scaler_state"] is not None:
                self.grad_scaler.load_state_dict(content["grad_scaler_state"])
            self.current_epoch = content["current_epoch"]
            self._best_ema = content["_best_ema"]
            self.logger.load_checkpoint(content["logging"])
            self.inference_allowed_mirroring_axes = content["inference_allowed_mirroring_axes"]
            self.load_further_state(content["further_state"])
        except Exception as error:  # torch raises many kinds of exceptions for a foreign file
            raise TrainingError(f"{filename_or_checkpoint} can't be continued: {str(error)[:200]}") from error


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Redirect nnU-Net's output to ``log``."""
    with log.open("a") as file, contextlib.redirect_stdout(file):
        yield
