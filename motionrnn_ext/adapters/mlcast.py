"""mlcast: a MotionRNN as the network of its `NowcastLightningModule`, which trains, validates and predicts with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..models import MotionRNN
from ..models.ensembles import NOISE, disturbing, repeated
from ..pixels import filled
from .sizes import padded


class MotionRNNNetwork(nn.Module):
    """A MotionRNN with the signature of mlcast's networks, and with gradients, also through an ensemble.

    Args:
        model: the model, trained or not.
        value_range: the values that stand for the pixels 0 and 1; mlcast normalises to [-1, 1].
        noise: the noise of an ensemble, see `motionrnn_ext.models.ensembles`.
    """

    def __init__(
        self, model: MotionRNN, value_range: tuple[float, float] = (-1.0, 1.0), noise: float = NOISE
    ) -> None:
        super().__init__()
        self.model, self.value_range, self.noise = model, value_range, noise

    def forward(self, x: Tensor, steps: int, ensemble_size: int = 1) -> Tensor:
        """Return the forecast (B, steps, N*C, H, W) of x (B, T, C, H, W), with N = ensemble_size.

        Missing values (nan) are read as the pixel 0. A size that the model does not take is padded, and cut again.
        """
        low, high = self.value_range
        frames = padded(self.model, filled((x - low) / (high - low)))
        if ensemble_size == 1:
            given = frames.shape[1]
            # What stands for the future is not read: after the given frames the model reads its own predictions.
            unread = frames.new_zeros(len(x), steps, *frames.shape[2:])
            future = self.model(torch.cat([frames, unread], 1), given)[:, given - 1 :]
        else:
            future = self._ensemble(frames, steps, ensemble_size).flatten(2, 3)
        return low + (high - low) * future[..., : x.shape[-2], : x.shape[-1]]

    def _ensemble(self, frames: Tensor, steps: int, members: int) -> Tensor:
        """Return (B, steps, N, C, H, W), as `MotionRNN.predict` makes an ensemble, and with gradients."""
        state = self.model.initial_state(len(frames), *frames.shape[-2:])
        future, disturb = [], disturbing(self.noise, None)
        with self.model.rollout():
            for frame in frames[:, :-1].unbind(1):
                _, state = self.model.step(frame, state)
            frame, state = frames[:, -1].repeat_interleave(members, 0), repeated(state, members, len(frames))
            for _ in range(steps):
                frame, state = self.model.step(frame, disturb(state))
                future.append(frame.unflatten(0, (-1, members)))
        return torch.stack(future, 1)
