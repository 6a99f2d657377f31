"""The clips of every optimiser step, and the data module that loads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, Subset

from ..data.registry import DATASETS, open_clips
from ..metrics import counted
from ..pixels import missing_share
from .config import Config

# The second number in the key of this random stream. The clips' own streams use 0, 1 and 2.
_ORDER = 3


class StepBatches(Sampler[list[int]]):
    """The indices of the clips of every optimiser step from `first_step` on, for one rank.

    They are a function of the seed, the step and the rank alone. Every epoch is a new permutation of the clips. Epochs
    follow each other without a gap, so a batch may reach into the next one.
    """

    def __init__(
        self, config: Config, first_step: int = 0, rank: int = 0, n_ranks: int = 1, n_clips: int | None = None
    ) -> None:
        self.config, self.first_step, self.rank, self.n_ranks = config, first_step, rank, n_ranks
        self.n_clips = config.train_clips if n_clips is None else n_clips

    def __len__(self) -> int:
        return self.config.steps  # all steps, because Lightning counts those of a resumed run from 0

    def __iter__(self) -> Iterator[list[int]]:
        order: dict[int, Any] = {}
        per_step, n_clips = self.config.batch_size * self.n_ranks, self.n_clips
        for step in range(self.first_step, self.config.steps):
            places = range(step * per_step + self.rank, (step + 1) * per_step, self.n_ranks)
            epochs = {place // n_clips for place in places}
            order = {epoch: order[epoch] if epoch in order else self._permutation(epoch) for epoch in epochs}
            yield [int(order[place // n_clips][place % n_clips]) for place in places]

    def _permutation(self, epoch: int) -> Any:
        return np.random.default_rng([self.config.seed, _ORDER, epoch]).permutation(self.n_clips)


class ClipDataModule(L.LightningDataModule):
    """The clips (T, C, H, W) of a run's data set, generated or read when they are needed."""

    trainer: L.Trainer

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        generated = "train" in DATASETS[config.dataset].generated
        self.training = open_clips(
            split="train", length=config.train_clips if generated else None, **config.data()
        )
        self.validation = open_clips(split="val", length=config.val_clips, **config.data())

    def check(self, n_ranks: int) -> None:
        """Raise ValueError if there are fewer clips for validation than processes."""
        if len(self.validation) < n_ranks:
            raise ValueError(
                f"val_clips gives {len(self.validation)} to validate on; {n_ranks} processes should have one each"
            )

    def about_missing(self) -> str:
        """Return a sentence on the share of missing values in up to 16 evenly spaced training clips."""
        n = len(self.training)
        chosen = [self.training[i * n // min(n, 16)] for i in range(min(n, 16))]
        share = sum(map(missing_share, chosen)) / len(chosen)
        return (
            f"missing values are stored as {self.config.missing}: {share:.2%} of "
            f"{counted(len(chosen), 'training clip')}; the model reads 0 there, loss and metrics leave them out"
        )

    def train_dataloader(self) -> DataLoader[Tensor]:
        trainer = self.trainer
        batches = StepBatches(
            self.config, trainer.global_step, trainer.global_rank, trainer.world_size, len(self.training)
        )
        return DataLoader(self.training, batch_sampler=batches, **self._workers())  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Tensor]:
        share = range(self.trainer.global_rank, len(self.validation), self.trainer.world_size)
        return DataLoader(
            Subset(self.validation, share),  # type: ignore[arg-type]
            batch_size=self.config.batch_size,
            **self._workers(),
        )

    def _workers(self) -> dict[str, Any]:
        return {"num_workers": self.config.workers, "persistent_workers": self.config.workers > 0}
