"""A state dict holds no code: load_checkpoint and save_official say what a user's class computes otherwise."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from small_models import loaded, model, same
from torch import nn

from motionrnn_ext import MotionRNN
from motionrnn_ext.layers import ConvLSTMCell
from motionrnn_ext.models import load_checkpoint, save_official


class Doubled(MotionRNN):
    def _advance(self, x, state, packed):
        prediction, state = super()._advance(x, state, packed)
        return 2 * prediction, state


class Halved(ConvLSTMCell):
    def forward(self, *inputs):
        hidden, state, memory = super().forward(*inputs)
        return hidden / 2, state, memory


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Scaled(nn.Module):
    """No subclass of a convolution, with the parameters of one."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight / 2, self.bias)


def doubled() -> MotionRNN:
    torch.manual_seed(0)
    return Doubled("convlstm", 1, (8, 8), 2, filter_size=3)


def halved() -> MotionRNN:
    made = model()
    made.cells[1] = Halved(8, 8, 3)
    return made


def standardised() -> MotionRNN:
    made = model()
    made.interfaces[0].gate = Standardised(16, 8, 1)
    return made


def scaled() -> MotionRNN:
    made = model()
    made.interfaces[0].gate = Scaled(made.interfaces[0].gate)
    return made


def periodic() -> MotionRNN:
    made = model()
    made.cells[0].conv_x[0].padding_mode = "circular"
    return made


CHANGED = {
    "model": (doubled, r"Doubled\._advance of the model"),
    "cell": (halved, r"Halved\.forward of cells\.1"),
    "convolution": (standardised, r"Standardised\.forward of interfaces\.0\.gate"),
    "module": (scaled, r"Scaled\.forward of interfaces\.0\.gate"),
    "padding": (periodic, r"padding_mode='circular' of cells\.0\.conv_x\.0"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_a_class_of_the_users_computes_otherwise_is_told(name: str, tmp_path: Path) -> None:
    make, phrase = CHANGED[name]
    made = make()
    torch.save(nn.DataParallel(made).state_dict(), tmp_path / "weights.pt")
    with pytest.warns(
        UserWarning, match=f"left out code of its own that the model was saved with: {phrase}$"
    ):
        found = load_checkpoint(tmp_path / "weights.pt")
    assert not same(found, made)
    with pytest.raises(ValueError, match=f"it has code of its own, {phrase}"):
        save_official(made, tmp_path / "model.ckpt")


def test_what_computes_the_same_is_not_told() -> None:
    class Small(MotionRNN):
        def __init__(self) -> None:
            super().__init__("convlstm", 1, (8, 8), 2, filter_size=3)

        def extra_repr(self) -> str:
            return "small"

        def loss(self, frames: torch.Tensor) -> torch.Tensor:
            return self(frames, 1).mean()

    small = Small()
    assert same(loaded(small.state_dict()), small)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its imports
        small.cells[0] = torch.compile(small.cells[0], backend="eager")
    loaded(small.state_dict())
