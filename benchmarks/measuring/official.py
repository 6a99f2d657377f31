"""Run the released MotionRNN program on our weights and inputs: its unmodified Warp, MotionGRU and whole network.

The program comes from a checkout of thuml/MotionRNN.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from motionrnn_ext.models import official_name

from ..cases import ModelSetting

MARK = Path("core", "layers", "MotionGRU.py")


class Program:
    """The program's modules. They run in float32: their sampling ignores the features' dtype."""

    def __init__(self, checkout: Path) -> None:
        if not (checkout / MARK).is_file():
            raise ValueError(
                f"--official: {checkout} holds no {MARK}; it should be a checkout of thuml/MotionRNN"
            )
        if str(checkout) not in sys.path:
            sys.path.append(str(checkout))
        for message in ("torch.meshgrid", ".*non-full backward hook", ".*register_backward_hook"):
            warnings.filterwarnings("ignore", message=message)
        self.layers = importlib.import_module("core.layers.MotionGRU")
        self.network = importlib.import_module("core.models.MotionRNN_PredRNN")

    def offset_warp(self, channels: int, device: str) -> Callable[..., Tensor]:
        """Return `(x, offset, mask_logits, weight) -> out`.

        The program's Warp makes the mask logits by a convolution of x. A module that returns the given ones replaces
        it, so that no implementation's time has the convolution in it.
        """
        warp = self.layers.Warp(channels, channels, 3).to(device)
        warp.warp_gate = given = _Given()
        del warp.conv.weight  # a parameter, which the caller's tensor replaces

        def call(x: Tensor, offset: Tensor, mask_logits: Tensor, weight: Tensor) -> Tensor:
            given.value, warp.conv.weight = mask_logits, weight
            return warp([x, offset])

        return call

    def motion_gru(self, channels: int, weights: Mapping[str, Tensor], device: str) -> nn.Module:
        """Return `(x, offset, trend) -> (out, offset, trend)`; parameters are named as in MotionGRUCell."""
        cell = self.layers.MotionGRU(channels, 18, 3)
        cell.load_state_dict(weights, strict=True)
        return cell.to(device)

    def motion_rnn(self, setting: ModelSetting, weights: Mapping[str, Tensor], device: str) -> nn.Module:
        """Return `(frames, mask) -> (predictions, loss)` on folded frames, channels last; `weights` have our names."""
        configs = SimpleNamespace(
            img_height=setting.size, img_width=setting.size, img_channel=setting.channels, patch_size=setting.patch,
            filter_size=setting.filter_size, stride=1, layer_norm=0, input_length=setting.given,
            total_length=setting.total, batch_size=setting.batch, device=device,
        )  # fmt: skip
        network: Any = self.network.RNN(len(setting.hidden), list(setting.hidden), configs)
        network.load_state_dict({official_name(name): t for name, t in weights.items()}, strict=True)
        return network.to(device)


class _Given(nn.Module):
    """A module that returns `value` whatever its input is."""

    value: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.value


def mask_of(setting: ModelSetting, device: str) -> Tensor:
    """Return the sampling mask that makes the program read its own predictions: zeros."""
    side = setting.size // setting.patch
    shape = (setting.batch, setting.predicted - 1, side, side, setting.patch**2 * setting.channels)
    return torch.zeros(shape, device=device)
