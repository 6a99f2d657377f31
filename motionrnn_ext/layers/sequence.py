"""The MotionGRU over a whole sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from .motion import MotionState
from .motion_gru import MotionGRU, check_hidden


class MotionGRULayer(MotionGRU):
    """A MotionGRU over sequences, batch first: `(hidden, state=None) -> (x, state)`, hidden and x (B, T, C, h, w).

    Arguments, parameters and state are MotionGRU's, and so is each step; state is the one after the last. To cut
    backpropagation between pieces of a long sequence, hand on `state.detach()`.

    Raises:
        ValueError: as MotionGRU; T of 0.
    """

    def initial_state(self, hidden: Tensor) -> MotionState:
        """Zero motion for a sequence `hidden`: that of a call without a state."""
        return super().initial_state(self._steps(hidden)[0])

    def forward(  # type: ignore[override]
        self, hidden: Tensor, state: MotionState | None = None
    ) -> tuple[Tensor, MotionState]:
        moved, packed = [], self.pack_ahead()
        for step in self._steps(hidden):
            x, state = super().forward(step, state, packed)
            moved.append(x)
        assert state is not None
        return torch.stack(moved, dim=1), state

    def _steps(self, hidden: Tensor) -> tuple[Tensor, ...]:
        check_hidden(hidden)
        fits = hidden.dim() == 5 + self.depth and hidden.shape[2] == self.hidden_channels
        if not fits or hidden.shape[1] == 0:
            wanted = f"(B, T, {self.hidden_channels}, {'D, ' if self.depth else ''}h, w) with T of 1 or more"
            raise ValueError(f"hidden has shape {tuple(hidden.shape)}; it should be {wanted}")
        return hidden.unbind(dim=1)
