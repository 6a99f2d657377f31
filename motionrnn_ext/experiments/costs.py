"""The costs of a row's model, counted before anything is trained."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..models import MotionRNN
from ..training.config import Config
from ..training.module import check_layout

COUNTED = (
    "MACs are the multiply-adds of one forward pass over a clip (batch of 1, inputs and predictions), those of "
    "convolutions and matrix products; what works element by element, and sampling between pixels, is not counted."
)


def costs(config: Config) -> dict[str, int]:
    """Return a model's `parameters` and `macs`, counted as `COUNTED` says: half of what torch's FlopCounterMode counts.

    The model is built and run here, so a mistake in the settings is found before hours of training.
    """
    with torch.random.fork_rng(devices=[]):
        model = MotionRNN(**config.model()).requires_grad_(False)
    check_layout(config, model)
    frames = torch.zeros(1, config.n_frames, model.in_channels, *config.image_size)
    counter = FlopCounterMode(display=False)
    # On the CPU, FlopCounterMode counts no form of attention but the plain one.
    with sdpa_kernel(SDPBackend.MATH), counter:
        model(frames, config.n_input)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "macs": counter.get_total_flops() // 2}
