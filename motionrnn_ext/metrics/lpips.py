"""LPIPS: the distance of two images in AlexNet's features (Zhang et al., CVPR 2018), with the user's weights.

    d(x, y) = sum_l mean_{h,w} w_l . (f_l(x) - f_l(y))^2

f_l are the activations of AlexNet's l-th convolution after its ReLU, scaled to length 1 over channels, and w_l the
learnt weight of each channel. Images are (N, 3, H, W) in [-1, 1]; `frame_lpips` maps frames in [0, 1] to this range and
repeats a grey channel three times.
"""

from __future__ import annotations

import math
import os
from importlib.resources import as_file, files
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import load_tensors
from ..pixels import as_floats, check_range, check_units

# The smallest height and width for which the last pooling has an output.
_SMALLEST = 31
# The positions of the ReLUs, whose outputs are compared, and of the convolutions in AlexNet's `features`.
_RELUS = (1, 4, 7, 9, 11)
_CONVOLUTIONS = (0, 3, 6, 8, 10)
_CHANNELS = (64, 192, 384, 256, 256)
# LPIPS normalises images in [-1, 1] by these, ImageNet's mean and deviation being for [0, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """The LPIPS network: `network(x, y)` maps two images (N, 3, H, W) in [-1, 1] to their distances (N,).

    It is in evaluation mode, and its weights take no gradients. They are random until `load_lpips` loads them.

    Raises:
        ValueError: the images have other shapes, or are smaller than 31x31.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(),
            nn.MaxPool2d(3, stride=2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(),
            nn.MaxPool2d(3, stride=2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.weights = nn.ParameterList(torch.zeros(channels) for channels in _CHANNELS)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1), persistent=False)
        self.source = "random weights"
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape != y.shape or x.shape[1] != 3:
            raise ValueError(f"images must both be (N, 3, H, W); got {tuple(x.shape)} and {tuple(y.shape)}")
        if min(x.shape[-2:]) < _SMALLEST:
            size = tuple(x.shape[-2:])
            raise ValueError(f"LPIPS needs frames of at least {_SMALLEST}x{_SMALLEST}; got {size}")
        pairs = zip(self._activations(x), self._activations(y), self.weights)
        distances = [torch.einsum("nchw,c->nhw", (a - b).square(), weight) for a, b, weight in pairs]
        return torch.stack([distance.mean((1, 2)) for distance in distances]).sum(0)

    def _activations(self, images: Tensor) -> list[Tensor]:
        """Return the activations of the five convolutions, scaled to length 1 over channels."""
        found, x = [], (images - self.shift) / self.scale
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _RELUS:
                found.append(x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt())
        return found


def frame_lpips(prediction: Tensor, truth: Tensor, network: LPIPS) -> Tensor:
    """Return the LPIPS of each frame: (B, L, C, H, W) -> (B, L) float32 on the network's device.

    Both frames are 0 where a true value is missing (nan); a frame without any true value gives nan.

    Args:
        prediction: floats in [0, 1] or uint8, with C = 1 or 3.
        truth: floats in [0, 1] or uint8, of the same shape.
        network: the network of `load_lpips`.

    Raises:
        ValueError: other shapes, another number of channels, frames smaller than 31x31, or true frames outside of
            [0, 1].
    """
    if prediction.ndim != 5 or prediction.shape != truth.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
        raise ValueError(f"prediction and truth must both be (B, L, C, H, W); got {shapes}")
    if prediction.shape[2] not in (1, 3):
        raise ValueError(f"LPIPS needs frames of 1 or 3 channels; got {prediction.shape[2]}")
    check_range(truth, "true frames")
    check_units(prediction)
    missing = truth.isnan().to(prediction.device)
    images = [
        as_floats(frames, "predictions")
        .masked_fill(missing.to(frames.device), 0)
        .to(network.shift)
        .mul(2)
        .sub(1)
        for frames in (prediction, truth)
    ]
    distances = network(*(frames.flatten(0, 1).expand(-1, 3, -1, -1) for frames in images))
    nothing = missing.flatten(2).all(-1).to(distances.device)
    return distances.view(prediction.shape[:2]).masked_fill(nothing, math.nan)


def load_lpips(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> LPIPS:
    """Load LPIPS with the weights in a file. Nothing is downloaded, and no code of the file runs.

    Args:
        path: a file of `torch.save` with a state dict: AlexNet's as torchvision publishes it (`features.0.weight` and
            so on), to which the channel weights w_l come from torchmetrics; or that of a whole LPIPS module
            (`net.slice1.0.weight`, `lin0.model.1.weight` and so on).
        device: the device of the network.

    Raises:
        ValueError: there is no such file, it is not a file of weights, or the weights are those of another network.
    """
    found = _read(path)
    if "lin0.model.1.weight" in found:
        linear = found
        slices = {f"net.slice{i}.{n}": n for i, n in enumerate(_CONVOLUTIONS, start=1)}
        features = {
            f"features.{n}.{k}": f"{name}.{k}" for name, n in slices.items() for k in ("weight", "bias")
        }
    else:
        linear = _linear_weights()
        features = {
            name: name for n in _CONVOLUTIONS for name in (f"features.{n}.weight", f"features.{n}.bias")
        }
    linear_names = {f"weights.{i}": f"lin{i}.model.1.weight" for i in range(len(_CHANNELS))}
    network = LPIPS()
    try:
        state = {name: found[theirs] for name, theirs in features.items()}
        state |= {name: linear[theirs].flatten() for name, theirs in linear_names.items()}
        network.load_state_dict(state)
    except KeyError as error:
        raise ValueError(
            f"{path} must hold the weights of AlexNet or of a whole LPIPS by AlexNet; it has no {error}"
        ) from None
    # The weights have other shapes.
    except RuntimeError as error:
        raise ValueError(f"{path} holds no weights of AlexNet: {_last_line(error)}") from None
    network.source = Path(path).name
    return network.to(device)


def _read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the state dict in a file; raise a ValueError if there is none."""
    try:
        found = load_tensors(path)
    except OSError as error:
        raise ValueError(f"LPIPS weights {path} cannot be read: {error.strerror or error}") from None
    # The unpickler can raise anything on foreign bytes.
    except Exception:
        raise ValueError(
            f"{path} is damaged, or not a file of weights (a state dict by torch.save)"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} must hold a state dict: names and tensors; it holds {type(found).__name__}")
    return found


def _linear_weights() -> dict[str, Tensor]:
    """Return the channel weights w_l of the LPIPS authors, version 0.1, which torchmetrics installs."""
    with as_file(files("torchmetrics.functional.image") / "lpips_models" / "alex.pth") as path:
        return _read(path)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
