"""What a row's model costs, counted before anything is trained."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..models import MotionRNN
from ..training.config import Config

COUNTED = (
    "MACs are the multiply-adds of one forward pass over a clip (batch of 1, inputs and predictions), those of "
    "convolutions and matrix products; what works element by element, and sampling between pixels, is not counted."
)


def costs(config: Config) -> dict[str, int]:
    """`parameters`, and `macs` as `COUNTED` says: half of what torch's FlopCounterMode counts.

    Building and running the model here also brings a mistake in the settings to light before hours of training.
    """
    with torch.random.fork_rng(devices=[]):
        model = MotionRNN(**config.model()).requires_grad_(False)
    frames = torch.zeros(1, config.n_frames, model.in_channels, *config.image_size)
    counter = FlopCounterMode(display=False)
    # Of attention torch counts the plain form alone, on the CPU.
    with sdpa_kernel(SDPBackend.MATH), counter:
        model(frames, config.n_input)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "macs": counter.get_total_flops() // 2}
