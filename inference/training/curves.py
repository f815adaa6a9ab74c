"""Training curves: a row per epoch as CSV, and a plot."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_COLUMNS = {
    "train_losses": "training_loss",
    "val_losses": "validation_loss",
    "mean_fg_dice": "patch_dice",
    "ema_fg_dice": "patch_dice_averaged",
    "lrs": "learning_rate",
}


def write_curves(logged: Mapping[str, Sequence[Any]], iterations_per_epoch: int, table: Path, picture: Path) -> None:
    """Write both from what nnU-Net logged; ``patch_dice`` is the mean over structures on random validation patches."""
    epochs = min(len(logged[key]) for key in (*_COLUMNS, "epoch_end_timestamps", "epoch_start_timestamps"))
    columns: dict[str, list[float]] = {
        "epoch": [float(epoch) for epoch in range(1, epochs + 1)],
        "iterations": [float(epoch * iterations_per_epoch) for epoch in range(1, epochs + 1)],
        **{name: [float(value) for value in logged[key][:epochs]] for key, name in _COLUMNS.items()},
        "seconds": [
            float(end - start)
            for end, start in zip(logged["epoch_end_timestamps"], logged["epoch_start_timestamps"], strict=False)
        ][:epochs],
    }
    part = table.with_name(f"{table.name}.partial")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([f"{value:g}" for value in row] for row in zip(*columns.values(), strict=True))
    part.replace(table)
    _draw(columns, picture)


def _draw(columns: Mapping[str, Sequence[float]], picture: Path) -> None:
    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, dice = figure.subplots(2, 1, sharex=True)
    for name in ("training_loss", "validation_loss"):
        losses.plot(columns["iterations"], columns[name], label=name.replace("_", " "))
    losses.set_ylabel("loss")
    losses.legend()
    dice.plot(columns["iterations"], columns["patch_dice"], alpha=0.4, label="validation patches")
    dice.plot(columns["iterations"], columns["patch_dice_averaged"], label="moving average")
    dice.set_ylim(0, 1)
    dice.set_ylabel("Dice, mean over structures")
    dice.set_xlabel("iterations")
    dice.legend()
    part = picture.with_name(f"partial-{picture.name}")
    figure.savefig(part, dpi=100)
    part.replace(picture)
