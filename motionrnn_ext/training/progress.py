"""The progress of a training: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
from lightning.pytorch import callbacks


class ProgressLines(callbacks.Callback):
    """A line after every validation, and another whenever `seconds` pass without one. Only the first process prints."""

    def __init__(self, steps: int, seconds: float = 30) -> None:
        self._steps, self._seconds = steps, seconds
        self._first_step, self._began, self._told = 0, 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._first_step, self._began = trainer.global_step, time.monotonic()
        self._told = self._began

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        if self._is_time(trainer):
            self._tell(trainer, f"loss {float(outputs['loss']):.4g}{self._pace(trainer)}")

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int, *_: Any
    ) -> None:
        if self._is_time(trainer):
            self._tell(trainer, f"validating, batch {index + 1:,} of {trainer.num_val_batches[0]:,}")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            found = trainer.callback_metrics
            text = f"validation loss {float(found['val/loss']):.4g}, MSE {float(found['val/mse']):.4g}"
            self._tell(trainer, f"{text}{self._pace(trainer)}")

    def _is_time(self, trainer: L.Trainer) -> bool:
        return trainer.is_global_zero and time.monotonic() - self._told >= self._seconds

    def _pace(self, trainer: L.Trainer) -> str:
        """Return the mean time per step since this start, validations included, and the time left."""
        done = trainer.global_step - self._first_step
        if not done:
            return ""
        each = (time.monotonic() - self._began) / done
        n_left = self._steps - trainer.global_step
        left = f", {_duration(each * n_left)} left" if n_left > 0 else ""
        return f", {each:.3g} s/step{left}"

    def _tell(self, trainer: L.Trainer, text: str) -> None:
        self._told = time.monotonic()
        print(f"step {trainer.global_step:,} of {self._steps:,}: {text}", flush=True)


def _duration(seconds: float) -> str:
    """Return a duration in words, rounded up, so that it is 0 s only when nothing is left to do."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


class ProgressBar(callbacks.RichProgressBar):
    """Lightning's bar without the epoch, which is the whole run here, and without the number of the log."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        return {
            name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"
        }

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"
