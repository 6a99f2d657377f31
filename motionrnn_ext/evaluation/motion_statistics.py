"""Numbers of the motion during a rollout: how far it goes, what the mask opens, how much of a map the parts make."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..layers.cells import RecurrentCell
from ..layers.motion_gru import MotionGRU
from ..layers.motion_gru_cell import MotionGRUCell
from ..models import MotionRNN
from ..models.off_map import share_off_map
from ..pixels import as_floats, filled


@torch.no_grad()
def motion_statistics(
    model: MotionRNN, clips: Sequence[Tensor], n_given: int, n_output: int, *, batch_size: int = 16
) -> dict[str, Any]:
    """Return means over clips and map positions of what a model does at each time step.

    The model reads the `n_given` first frames of each clip (T, C, H, W) and then its own predictions, so that it takes
    n_given + n_output - 1 steps. Every number is a list over steps; entry n_given - 1 belongs to the first frame after
    the given ones, t+1. Lengths are in pixels of the half-size map.

        offset_rms     of F, the offsets that the taps take
        transient_rms  of F' = F + u.(z - F), before the trend is added and the sum is bounded
        trend_rms      of D'
        off_map        share of taps outside of the map, which read zeros
        at_bound       share of offsets at max_offset
        update_gate    mean of u
        mask           mean of the mask m
        mask_entropy   of m over the taps, as a share of the sum: 1 if all taps weigh the same, 0 for a single one
        hidden_weight  mean weight of H, which is not moved, beside the moved map, in the MotionGRU's output
        highway_rms    of (1 - o).H from the layer below, the highway's part of a layer's output
        hidden_rms     of that output, the highway's part included

    Returns:
        A dict with "clips", "n_input", "n_output", "motion_grus" (the numbers to hidden_weight, by "MotionGRU 1" and so
        on) and "layers" (the last two, by "layer 2" and so on, for layers with a highway). A layer whose cell keeps a
        state of its own (compat="openstl") is left out.
    """
    totals = _Totals()
    for start in range(0, len(clips), batch_size):
        given = torch.stack([clip[:n_given] for clip in clips[start : start + batch_size]])
        given = filled(given if given.is_floating_point() else as_floats(given)).to(
            model.conv_last.weight.device
        )
        # Past the given frames the model reads its own predictions, and of these frames only the number counts.
        future = given[:, -1:].expand(-1, n_output, -1, -1, -1)
        model.reset()
        handles = list(_watch(model, totals))
        try:
            generator = torch.Generator(given.device).manual_seed(start)
            model(torch.cat([given, future], dim=1), n_given, generator=generator)
        finally:
            for handle in handles:
                handle.remove()
        totals.add_batch(len(given))
    model.reset()
    parts = {kind: totals.means(kind, len(clips)) for kind in ("MotionGRU", "layer")}
    about = {"clips": len(clips), "n_input": n_given, "n_output": n_output}
    return {**about, "motion_grus": parts["MotionGRU"], "layers": parts["layer"]}


class _Totals:
    """Sums over clips of numbers at each step, by the name of a part such as "MotionGRU 1"."""

    def __init__(self) -> None:
        self._noted: dict[tuple[str, str], list[Tensor]] = {}
        self._sums: dict[tuple[str, str], Tensor] = {}

    def note(self, part: str, **numbers: Tensor) -> None:
        """Take the numbers of the next step of a part, means over a batch."""
        for name, value in numbers.items():
            self._noted.setdefault((part, name), []).append(value.double().cpu())

    def add_batch(self, clips: int) -> None:
        """Add the steps of a batch of so many clips."""
        for key, steps in self._noted.items():
            self._sums[key] = self._sums.get(key, torch.zeros(())) + clips * torch.stack(steps)
        self._noted.clear()

    def means(self, kind: str, clips: int) -> dict[str, dict[str, list[float]]]:
        """Return the means over clips of the parts of a kind."""
        found: dict[str, dict[str, list[float]]] = {}
        for (part, name), total in self._sums.items():
            if part.startswith(kind):
                mean = total / clips
                found.setdefault(part, {})[name] = (mean.sqrt() if name.endswith("_rms") else mean).tolist()
        return found


def _watch(model: MotionRNN, totals: _Totals) -> Iterator[Any]:
    """Set hooks that note what the model does at each step, and yield their handles."""
    for level, interface in enumerate(model.interfaces, 1):
        gru, part = cast(MotionGRU, interface), f"MotionGRU {level}"

        def of_cell(cell: Any, inputs: Any, output: Any, part: str = part) -> None:
            totals.note(part, **_of_cell(cell, inputs, output))

        def of_gate(_: Any, inputs: Any, logits: Tensor, part: str = part, side: str = gru.gate_side) -> None:
            weight = logits.float().sigmoid().mean()
            totals.note(part, hidden_weight=weight if side == "hidden" else 1 - weight)

        yield gru.cell.register_forward_hook(of_cell)
        yield gru.gate.register_forward_hook(of_gate)
    for level, module in enumerate(model.cells, 1):

        def of_layer(cell: Any, inputs: Any, output: Any, part: str = f"layer {level}") -> None:
            *before, highway = inputs
            if highway is not None:
                # Without its highway a cell returns its own part of the output alone.
                own = cell.forward(*before)[0]
                totals.note(part, highway_rms=_square(output[0] - own), hidden_rms=_square(output[0]))

        # A cell that keeps a state may not be called twice for a step.
        cell = cast(RecurrentCell, module)
        if not (cell.keeps_state and cell.compat):
            yield cell.register_forward_hook(of_layer)


def _of_cell(cell: MotionGRUCell, inputs: Any, output: Any) -> dict[str, Tensor]:
    """Return the numbers of one step of a MotionGRU's cell."""
    x, before = inputs[0], inputs[1]
    _, offset, trend = output
    seen = torch.cat([x, before.to(x.dtype)], dim=1)
    update = cell.update(seen).float().sigmoid()
    reset = cell.reset(seen).float().sigmoid()
    candidate = cell.output(torch.cat([x, (reset * before).to(x.dtype)], dim=1)).float().tanh()
    transient = before + update * (candidate - before) if cell.transient else torch.zeros_like(before)
    mask = cell.warp.warp_gate(x).float().sigmoid()  # (B, K, h, w)
    shares = mask / mask.sum(dim=1, keepdim=True)
    entropy = -torch.special.xlogy(shares, shares).sum(dim=1) / math.log(max(2, mask.shape[1]))
    bound = math.inf if cell.max_offset is None else cell.max_offset
    return {
        "offset_rms": _square(offset),
        "transient_rms": _square(transient),
        "trend_rms": _square(trend),
        "off_map": share_off_map(offset),
        "at_bound": (offset.abs() >= bound).float().mean(),
        "update_gate": update.mean(),
        "mask": mask.mean(),
        "mask_entropy": entropy.mean(),
    }


def _square(x: Tensor) -> Tensor:
    """Return the mean square, of which `_Totals.means` takes the root."""
    return x.double().square().mean()
