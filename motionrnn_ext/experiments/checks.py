"""What is wrong with settings, data, machine or metrics comes to light here, before anything is written or trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import lightning as L
from torch.utils.data import Subset

from ..data.registry import DATASETS, ClipDataset
from ..evaluation.clips import held_out
from ..evaluation.scores import BASELINE, score
from ..models import MotionRNN
from ..training.batches import ClipDataModule
from ..training.runs import RunError
from .costs import costs
from .plan import Plan

TEST_SEED = 0  # of the test clips: the same for every cell, whatever seed it was trained with


class Checked(NamedTuple):
    """A plan that works out, with what all its cells share."""

    plan: Plan
    costs: dict[str, dict[str, int]]  # by row
    clips: ClipDataset  # of the test
    metrics: tuple[str, ...]  # what is measured

    def score(self, models: Mapping[str, MotionRNN], clips: ClipDataset | None = None) -> dict[str, Any]:
        """label -> the models' metrics on the test clips, or on others; the baseline's too."""
        config, clips = self.plan.config, self.clips if clips is None else clips
        colours = DATASETS[config.dataset].colours
        return score(models, clips, config.n_input, protocol=self.plan.protocol, colours=colours)


def check(plan: Plan) -> Checked:
    """Builds every row's model, opens the data, and scores the baseline on two test clips with all that is asked for.

    Raises:
        ValueError: the first mistake found.
    """
    counts = {row.label: costs(replace(plan.config, **row.switches)) for row in plan.rows}
    _check_machine(plan)
    ClipDataModule(plan.config)
    clips = held_out(replace(plan.config, seed=TEST_SEED), plan.test_clips)
    checked = Checked(plan, counts, clips, ())
    few: ClipDataset = Subset(clips, range(min(2, len(clips))))  # type: ignore[arg-type]
    return checked._replace(metrics=names_of(checked.score({}, few)[BASELINE]))


def _check_machine(plan: Plan) -> None:
    config = plan.config
    try:
        L.Fabric(accelerator=config.accelerator, devices=config.devices)
    except Exception as error:  # Lightning's own kinds among them
        raise RunError(
            f"accelerator {config.accelerator!r} cannot be used: {' '.join(str(error).split())}"
        ) from None


def names_of(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics of a table: those with a mean over lead times, and FVD."""
    return (*(name for name in metrics["per_lead"] if name in metrics), *({"fvd"} & metrics.keys()))
