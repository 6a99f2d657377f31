"""Checks of settings, data, machine and metrics, made before anything is written or trained."""

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

# The seed of the test clips, which are the same for every training, whatever its own seed.
TEST_SEED = 0


class Checked(NamedTuple):
    """A plan that has passed the checks.

    Attributes:
        costs: the result of `costs` for each row, by label.
        clips: the test clips, on which all models are scored.
        metrics: the names of the metrics that are measured.
        baselines: the results of the baselines on the test clips, by label; empty until they are first scored.
    """

    plan: Plan
    costs: dict[str, dict[str, int]]
    clips: ClipDataset
    metrics: tuple[str, ...]
    baselines: dict[str, Any]

    def score(self, models: Mapping[str, MotionRNN], clips: ClipDataset | None = None) -> dict[str, Any]:
        """Return the results of `scores.score` by label, on the test clips or on `clips`."""
        config, clips = self.plan.config, self.clips if clips is None else clips
        colours = DATASETS[config.dataset].colours
        how: Any = {"protocol": self.plan.protocol, "colours": colours, "per_clip": True}
        if clips is not self.clips:
            return score(models, clips, config.n_input, **how)
        # The baselines are the same for every training.
        found = score(models, clips, config.n_input, with_baselines=not self.baselines, **how)
        self.baselines.update({label: one for label, one in found.items() if one.get("baseline")})
        return {label: dict(one) for label, one in {**self.baselines, **found}.items()}


def check(plan: Plan) -> Checked:
    """Build every row's model, open the data, and measure all metrics of the baseline on two test clips.

    Raises:
        ValueError: the first mistake that is found.
    """
    counts = {row.label: costs(row.settings(plan.config)) for row in plan.rows}
    _check_machine(plan)
    ClipDataModule(plan.config)
    clips = held_out(replace(plan.config, seed=TEST_SEED), plan.test_clips)
    checked = Checked(plan, counts, clips, (), {})
    few: ClipDataset = Subset(clips, range(min(2, len(clips))))  # type: ignore[arg-type]
    return checked._replace(metrics=names_of(checked.score({}, few)[BASELINE]))


def _check_machine(plan: Plan) -> None:
    """Raise a RunError if the accelerator or its devices cannot be used."""
    config = plan.config
    try:
        L.Fabric(accelerator=config.accelerator, devices=config.devices)
    except Exception as error:
        # Lightning raises several kinds of errors, some of them its own.
        raise RunError(
            f"accelerator {config.accelerator!r} cannot be used: {' '.join(str(error).split())}"
        ) from None


def names_of(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a table's metrics: those with a mean over lead times, and FVD."""
    return (*(name for name in metrics["per_lead"] if name in metrics), *({"fvd"} & metrics.keys()))
