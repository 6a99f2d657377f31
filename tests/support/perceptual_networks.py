"""Small networks for LPIPS and FVD, as fixtures of every test (a plugin of tests/conftest.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn


def alexnet(seed: int = 0) -> dict[str, Tensor]:
    """Return random weights by the names of torchvision's AlexNet, its classifier included in part."""
    from motionrnn_ext.metrics import LPIPS  # here, as this is loaded for every test

    torch.manual_seed(seed)
    state = {name: value for name, value in LPIPS().state_dict().items() if name.startswith("features")}
    state = {name: torch.randn_like(value) / value[0].numel() ** 0.5 for name, value in state.items()}
    return {**state, "classifier.1.weight": torch.zeros(2, 2)}


@pytest.fixture(scope="module")
def alexnet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(alexnet(), path)
    return path


class Moments(nn.Module):
    """Like the I3D file: scales and resizes unless told not to, and takes no clip of fewer than three frames."""

    def forward(
        self, video: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:
        if rescale or resize or not return_features:
            return video
        if video.shape[2] < 3:
            raise RuntimeError("pooling window is larger than its input")
        corner = video[:, :, :, 0, 0].mean((1, 2))
        return torch.stack([video.mean((1, 2, 3, 4)), corner, video[:, 0, 0].mean((1, 2))], 1)


@pytest.fixture(scope="module")
def video_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks") / "small.pt"
    torch.jit.script(Moments()).save(str(path))
    return path
