"""OpenSTL: a MotionRNN as a method of its trainer, with the data, sampling, loss and tests of its PredRNN."""

from __future__ import annotations

from typing import Any

import torch
from openstl.methods import PredRNN, method_maps
from torch import Tensor, nn

from ..models import MotionRNN
from ..models.patches import fold_patches, unfold_patches


def register(name: str = "motionrnn") -> type[MotionRNNMethod]:
    """Make OpenSTL's experiments take the method `name`, and return its class."""
    method_maps[name] = MotionRNNMethod
    return MotionRNNMethod


class MotionRNNMethod(PredRNN):
    """OpenSTL's PredRNN with a MotionRNN for its network.

    The settings are PredRNN's: num_hidden, filter_size, patch_size, layer_norm, scheduled sampling. The setting
    `motionrnn` is a dict of further arguments of `MotionRNN`, such as predictor ("predrnn" by default) and variant.
    """

    def _build_model(self, **_: Any) -> MotionRNNInPatches:
        return MotionRNNInPatches(self.hparams)


class MotionRNNInPatches(nn.Module):
    """A MotionRNN that takes and returns frames as OpenSTL's recurrent networks do: with patches in the last axis."""

    def __init__(self, configs: Any) -> None:
        super().__init__()
        _, channels, height, width = configs.in_shape
        self.n_input = configs.pre_seq_length
        self.is_reverse = configs.reverse_scheduled_sampling == 1
        options = {"predictor": "predrnn", **configs.get("motionrnn", {})}
        self.network = MotionRNN(
            in_channels=channels,
            hidden_channels=[int(width) for width in configs.num_hidden.split(",")],
            patch_size=configs.patch_size,
            filter_size=configs.filter_size,
            layer_norm=bool(configs.layer_norm),
            image_size=(height, width),
            **options,
        )

    def forward(
        self, frames: Tensor, mask: Tensor, return_loss: bool = True, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the predictions of all frames but the first, and the mean squared error.

        Args:
            frames: (B, T, h, w, P*P*C).
            mask: 1 where a true frame is read, 0 where the prediction is, the same over a whole frame; of that form.
            return_loss: whether to compute the error.
        """
        self.network.reset()
        read = unfold_patches(frames.movedim(-1, 2), self.network.patch_size)
        whole = torch.as_tensor(mask, dtype=frames.dtype, device=frames.device)[..., :1, :1, :1]
        made = self.network(read, self.n_input, whole, reverse_sampling=self.is_reverse)
        predictions = fold_patches(made, self.network.patch_size).movedim(2, -1)
        return predictions, nn.functional.mse_loss(predictions, frames[:, 1:]) if return_loss else None
