"""Ensembles: several predictions of one sequence, which differ by noise in the hidden states.

This is an addition of ours, not the paper's. The input frames are read once. Then the state is repeated for every
member, and before each step that predicts, every layer's hidden map H of the step before gets noise:

    H  <-  H + noise * rms(H) * e

e is drawn from a standard normal, for every value, layer, step and member anew; rms(H) is the root mean square of H
over channels and positions, of each sample by itself. The noise passes through the gates, the motion and the frames
that are fed back, so that the members drift apart from step to step. Weights do not change, and no training is needed.
Whether the spread fits the errors has to be measured, see `motionrnn_ext.metrics.EnsembleMetrics`.

If there is a single input frame, the state before it is 0 and has no noise: the members then share their first frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..backends.torch_private import tree_map_only
from ..layers.arguments import check_whole, shown
from ..layers.cells import RecurrentCell
from .arguments import check_generator

# The noise of ensembles unless another is given. docs/training.md has a measured example of others.
NOISE = 1.0
State = TypeVar("State", bound=tuple)  # type: ignore[type-arg]


def check_ensemble(
    members: Any,
    noise: Any,
    generator: torch.Generator | None,
    device: torch.device,
    cells: Sequence[RecurrentCell],
) -> None:
    """Raise an error unless an ensemble can be made with these arguments of `MotionRNN.predict`.

    Raises:
        ValueError: `members` is below 1, `noise` is below 0 or not finite, the generator is on another device, or the
            cells keep a state between calls.
        TypeError: an argument has another type.
    """
    check_whole("members", members, at_least=1)
    if isinstance(noise, bool) or not isinstance(noise, Real):
        raise TypeError(f"noise is {shown(noise)}; it should be a number of at least 0")
    if not 0 <= float(noise) < math.inf:
        raise ValueError(f"noise is {noise}; it should be a number of at least 0")
    check_generator(generator, device)
    if any(cell.keeps_state and cell.compat for cell in cells):
        raise ValueError(
            f"members is {members}; it should be None with compat='openstl', whose cells keep a state from call to call"
        )


def repeated(state: State, members: int, batch_size: int) -> State:
    """Return a state of B samples for B*N, in which the N members of a sample follow each other."""

    def repeat(t: Tensor) -> Tensor:
        if not batch_size:
            return t
        # The motion of maps with a depth W has the size B*W.
        return t.unflatten(0, (batch_size, -1)).repeat_interleave(members, 0).flatten(0, 1)

    return tree_map_only(Tensor, repeat, state)


def disturbing(noise: float, generator: torch.Generator | None) -> Callable[[Any], Any]:
    """Return a function that adds the noise to the hidden maps of a `MotionRNNState`."""

    def disturb(state: Any) -> Any:
        return state._replace(layers=tuple(_disturbed(layer, noise, generator) for layer in state.layers))

    return disturb


def _disturbed(layer: Any, noise: float, generator: torch.Generator | None) -> Any:
    hidden = layer.hidden
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    rms = wide.square().flatten(1).mean(1).sqrt().view(-1, *[1] * (hidden.dim() - 1))
    drawn = torch.randn(hidden.shape, dtype=wide.dtype, device=hidden.device, generator=generator)
    return layer._replace(hidden=(wide + noise * rms * drawn).to(hidden.dtype))
