"""Small models that checkpoints are made of, and how two of them are compared."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from motionrnn_ext import MotionRNN
from motionrnn_ext.models import load_checkpoint

Tensors = dict[str, Tensor]


def model(predictor: str = "convlstm", layers: int = 2, **options: Any) -> MotionRNN:
    torch.manual_seed(0)
    made = MotionRNN(predictor, 1, (8,) * layers, 2, **{"filter_size": 3, **options})
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def same(a: MotionRNN, b: MotionRNN) -> bool:
    """Whether both give the same predictions."""
    frames = torch.rand(1, 4, 1, 8, 12, generator=torch.Generator().manual_seed(1))
    return torch.equal(a(frames, 2), b(frames, 2))


def equal(a: MotionRNN, b: MotionRNN) -> bool:
    """Whether both were made with the same arguments and have the same weights."""
    ours, theirs = a.state_dict(), b.state_dict()
    return a.arguments == b.arguments and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def loaded(source: Any, **options: Any) -> MotionRNN:
    """Loaded without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_checkpoint(source, **options)
