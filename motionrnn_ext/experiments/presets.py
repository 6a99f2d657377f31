"""The sizes of tables by name: settings of the trainings, seeds, test clips and metrics."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ..training.config import SMALL, Config


class Preset(NamedTuple):
    """The size of a table.

    Attributes:
        config: the settings that all trainings share.
        test_clips: the largest number of held-out clips; a data set of files may have fewer.
        thresholds: those of events, in dBZ; none where no events are scored.
    """

    config: Config
    seeds: tuple[int, ...]
    test_clips: int
    thresholds: tuple[float, ...] | None = None


# A table of this size takes minutes on two cores. It shows how the commands work; the trainings are too short to rank
# models.
_QUICK = replace(
    SMALL,
    hidden=(16, 16),
    image_size=(32, 32),
    digit_size=16,
    n_input=4,
    n_output=4,
    val_clips=8,
    steps=400,
    val_every=200,
)
# The models and clips of `motionrnn demo`, with seven times its steps.
_FULL = replace(SMALL, steps=10_000, accelerator="auto", val_every=1000)
PRESETS = {"quick": Preset(_QUICK, (0, 1), 128), "full": Preset(_FULL, (0, 1, 2), 512)}

# The preset `standard`, by data set: the smallest setting found in which a ConvLSTM beats the baselines. The files
# are those of docs/data.md. The loss has a term of SSIM, without which the optical flow is better in SSIM.
_STANDARD = replace(SMALL, loss="l1+l2+ssim", steps=2400, val_every=400, accelerator="auto")
STANDARD = {
    # Two digits that turn and change their size; real MNIST with --digits.
    "moving_digits": Preset(_STANDARD, (0, 1, 2), 256),
    # Radar of Trentino, every 10 minutes. The optical flow has a better CSI at 15 dBZ than 48 channels after 2,000
    # steps, and than a loss with the weights of Marshall and Palmer's relation. Those begin at 28 dBZ, HKO-7's at 22.
    "shanghai_h5": Preset(
        _STANDARD.changed(
            {
                "dataset": "shanghai_h5",
                "stride": 2,
                "clip_step": 1,
                "n_input": 5,
                "n_output": 4,
                "dbz": (0.0, 52.5),
                "hidden": (64, 64),
                "loss": "balanced+ssim",
                "zr": (58.53, 1.56),
                "ssim_weight": 0.2,
                "steps": 4000,
            }
        ),
        (0, 1, 2),
        256,
        (15.0, 25.0, 35.0),
    ),
    # Walking people before one fixed camera, from 128x128 pixels in colour. Without `residual` the last frame has a
    # better SSIM at every lead time (0.73 to 0.86 at the first, 64 channels and 2,400 steps), because the background
    # passes through the state; with an ssim_weight of 0.2 and 2,400 steps the optical flow has,
    # by 0.001, at the second.
    "human36m_openstl": Preset(
        _STANDARD.changed(
            {
                "dataset": "human36m_openstl",
                "image_size": (64, 64),
                "n_input": 4,
                "n_output": 4,
                "overrides": {"residual": True},
                "l1_weight": 1.0,
                "ssim_weight": 0.5,
                "steps": 3200,
            }
        ),
        (0, 1, 2),
        256,
    ),
}


def preset(name: str, dataset: str | None = None) -> Preset:
    """Return a preset: `standard` for a data set, by default moving_digits, the others for any.

    Raises:
        ValueError: `standard` has no settings for the data set.
    """
    if name in PRESETS:
        return PRESETS[name]
    dataset = "moving_digits" if dataset is None else dataset
    if dataset not in STANDARD:
        known = ", ".join(STANDARD)
        raise ValueError(f"preset standard has no settings for {dataset}; it has some for {known}")
    return STANDARD[dataset]
