"""Trainings that take a second, plans of several, and the comparison of two runs to the bit."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from motionrnn_ext.experiments import Plan, ablation
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.module import Training
from motionrnn_ext.training.runs import CONFIG_KEY
from motionrnn_ext.training.train import train

TINY = Config(
    hidden=(8, 8),
    patch_size=2,
    filter_size=3,
    image_size=(16, 16),
    digit_size=8,
    n_input=3,
    n_output=3,
    train_clips=10,
    val_clips=3,
    batch_size=2,
    steps=11,
    val_every=3,
    log_every=1,
    accelerator="cpu",
)
LAST, BEST = Path("checkpoints/last.ckpt"), Path("checkpoints/best.ckpt")


def run(config: Config, folder: Path, **options: Any) -> Path:
    return train(config, folder, progress=False, **options)


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def assert_same_training(one: Path, other: Path) -> None:
    """The same weights, optimiser and schedule, bit for bit, in both kept checkpoints; and the same logs."""
    for name in (LAST, BEST):
        a, b = checkpoint(one / name), checkpoint(other / name)
        assert a["global_step"] == b["global_step"]
        for key in ("state_dict", "optimizer_states", "lr_schedulers", CONFIG_KEY):
            assert_identical(a[key], b[key], key)
    columns = ("step", "train/loss", "train/sampling", "val/mse", "val/ssim", "val/loss")
    logs = [list(csv.DictReader((folder / "metrics.csv").open())) for folder in (one, other)]
    a_rows, b_rows = ([[row.get(name, "") for name in columns] for row in log] for log in logs)
    assert a_rows == b_rows


def assert_identical(a: Any, b: Any, where: str) -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b)):
            assert_identical(*pair, f"{where}[{i}]")
    else:
        assert a == b, where


class Stop(Exception):
    """Not the user's interrupt, which Lightning handles."""


def stop_in_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    true_step = Training.training_step

    def training_step(self: Training, frames: torch.Tensor, index: int) -> torch.Tensor:
        if self.global_step == step:
            raise Stop
        return true_step(self, frames, index)

    monkeypatch.setattr(Training, "training_step", training_step)


# ---- Plans of several trainings

QUICK = replace(TINY, steps=2, val_every=2, val_clips=2, n_input=2, n_output=2)


def plan(
    config: Config = QUICK, seeds: Sequence[int] = (0, 1), labels: Sequence[str] = ("base", "both")
) -> Plan:
    """Some rows of the ablation."""
    whole = ablation(config, seeds, test_clips=3)
    pairs = tuple(pair for pair in whole.pairs if set(pair) <= set(labels))
    return replace(whole, rows=tuple(row for row in whole.rows if row.label in labels), pairs=pairs)
