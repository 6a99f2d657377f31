"""The MotionGRU over a whole sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from .motion import MotionState
from .motion_gru import MotionGRU, check_hidden
from .rollout import rollout


class MotionGRULayer(MotionGRU):
    """A MotionGRU over sequences, batch first: `(hidden, state=None) -> (x, state)`.

    Arguments, parameters and state are those of `MotionGRU`, and every time step computes what it computes. To cut
    backpropagation between the pieces of a long sequence, pass on `state.detach()`.

    Examples:
        >>> layer = MotionGRULayer(64)
        >>> x, state = layer(torch.rand(2, 10, 64, 32, 32))  # x has the same shape
    """

    def initial_state(self, hidden: Tensor) -> MotionState:
        """Return zero motion for a sequence `hidden` (B, T, C, h, w): the state of a call without one."""
        return super().initial_state(self._steps(hidden)[0])

    def forward(  # type: ignore[override]
        self, hidden: Tensor, state: MotionState | None = None
    ) -> tuple[Tensor, MotionState]:
        """Move the maps of a sequence, step by step.

        Args:
            hidden: H, (B, T, C, h, w) with T of 1 or more, h and w even; (B, T, C, D, h, w) with `depth`.
            state: the motion before the first step; None for zero motion.

        Returns:
            The moved maps X, in the shape of `hidden`, and the motion after the last step.

        Raises:
            ValueError: hidden or the state has another shape, h or w is odd, or T is 0.
            TypeError: hidden is no floating-point tensor, or state is no `MotionState` or pair.
        """
        moved, packed, maps = [], self.pack_ahead(), self._steps(hidden)
        with rollout(self, len(maps), maps[0][:, 0].numel()):
            for step in maps:
                x, state = super().forward(step, state, packed)
                moved.append(x)
        assert state is not None
        return torch.stack(moved, dim=1), state

    def _steps(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of every step; raise an error if `hidden` is no sequence of maps."""
        check_hidden(hidden)
        fits = hidden.dim() == 5 + self.depth and hidden.shape[2] == self.hidden_channels
        if not fits or hidden.shape[1] == 0:
            wanted = f"(B, T, {self.hidden_channels}, {'D, ' if self.depth else ''}h, w) with T of 1 or more"
            raise ValueError(f"hidden has shape {tuple(hidden.shape)}; it should be {wanted}")
        return hidden.unbind(dim=1)
