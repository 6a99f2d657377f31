"""The work of `motionrnn visualize`: pictures of the motion that a model has learnt, over the frames that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .. import visualize
from ..data.registry import DATASETS
from ..layers.motion_gru import MotionGRU
from ..models import MotionRNN
from ..pixels import in_unit_range
from ..training.runs import Run, RunError
from .clips import in_rgb
from .pictures import Pictures
from .scores import motion_states, on_device, predict_clips


class Motion(NamedTuple):
    """The motion in one MotionGRU after each of T frames; `visualize` has the conventions.

    Attributes:
        offset: F (T, 2K, h', w'), the offsets of the K positions that are read.
        trend: D (T, 2K, h', w').
        mask: the weights (T, K, h', w') of the K positions, in [0, 1].
    """

    offset: Tensor
    trend: Tensor
    mask: Tensor


@torch.no_grad()
def motions(model: MotionRNN, given: Tensor, future: Tensor, seed: int = 0) -> dict[str, Motion]:
    """Return the offsets and trends of `motion_states` with the taps' weights, by MotionGRU."""
    masks: list[list[Tensor]] = [[] for _ in model.interfaces]

    def watch(cell: Any, inputs: tuple[Any, ...], seen: list[Tensor]) -> None:
        # Index -1 is the only clip, or its newest slice: (K, h', w').
        seen.append(cell.warp.warp_gate(inputs[0]).sigmoid()[-1])

    handles = [
        cast("MotionGRU", gru).cell.register_forward_pre_hook(lambda cell, x, seen=seen: watch(cell, x, seen))
        for gru, seen in zip(model.interfaces, masks)
    ]
    try:
        states = motion_states(model, given, future, seed)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: Motion(state.offset, state.trend, torch.stack(seen))
        for (name, state), seen in zip(states.items(), masks)
    }


def draw_motion(
    run: Run,
    frames: Tensor,
    n_given: int,
    n_output: int,
    folder: Path,
    *,
    interface: int | None = None,
    times: Sequence[int] | None = None,
    positions: int = 3,
    device: str = "cpu",
    dbz: tuple[float, ...] | None = None,
) -> Pictures:
    """Let a model read the first `n_given` of frames (T, C, H, W) and predict `n_output` more; draw its motion.

    Writes arrows.png, taps.png and motion.gif. `interface` and `times` count from 1. `dbz` is the
    reflectivity of pixels 0 and 1 of radar.

    Raises:
        RunError: the model has no MotionGRUs, or there is no such interface or time.
    """
    if not run.model.interfaces:
        raise RunError(
            f"{run.path} has no MotionGRU, and so no motion to draw; train with two layers or more and --motion-gru"
        )
    _check_range("interface", [interface or 1], len(run.model.interfaces))
    _check_range("n_input", [n_given], len(frames))
    shown = [t - 1 for t in sorted(set(times))] if times else None
    _check_range("times", times or [], n_given + n_output - 1)

    frames = in_unit_range(frames)
    model, given = on_device(run.model, device), frames[:n_given].to(device)
    future = predict_clips(model, given[None], n_output)[0]  # (n_output, C, H, W)
    found = motions(model, given, future)
    if interface:
        found = {name: motion for name, motion in found.items() if name == f"MotionGRU {interface}"}
    read = in_rgb(torch.cat([given, future])[:-1].cpu(), DATASETS[run.config.dataset].colours)
    offsets = {name: motion.offset for name, motion in found.items()}
    masks = {name: motion.mask.cpu() for name, motion in found.items()}
    # A model without a trend has D = 0; the offsets are drawn as arrows instead.
    arrows, what = {name: motion.trend for name, motion in found.items()}, "motion trend"
    if not model.trend:
        arrows, what = offsets, "offset"
    options: Any = {"masks": masks, "positions": positions, "dbz": dbz}
    pictures = Pictures()
    pictures.draw(visualize.arrows, folder / "arrows.png", read, arrows, shown, what=what, dbz=dbz)
    pictures.draw(visualize.taps, folder / "taps.png", read, offsets, shown, **options)
    pictures.draw(visualize.motion_gif, folder / "motion.gif", read, arrows, offsets, what=what, **options)
    return pictures


def _check_range(name: str, numbers: Sequence[int], highest: int) -> None:
    """Raise a RunError if one of the numbers is not from 1 to `highest`."""
    for number in numbers:
        if not 1 <= number <= highest:
            raise RunError(f"{name} must be from 1 to {highest}; got {number}")
