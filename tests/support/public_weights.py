"""Small state dicts with the names and layouts of the public programs."""

from __future__ import annotations

import torch

from motionrnn_ext.models import MotionRNN, official_name

BASE = {"motion_gru": False, "highway": False}


def net(predictor: str = "predrnn", layers: int = 3, **options) -> MotionRNN:
    torch.manual_seed(0)
    model = MotionRNN(predictor, 3, (8,) * layers, 4, "official", **{"filter_size": 3, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def official_dict(model: MotionRNN) -> dict[str, torch.Tensor]:
    return {official_name(name): t.clone() for name, t in model.state_dict().items()}


def edited(remove=(), **add):
    weights = official_dict(net())
    for name in remove:
        del weights[name]
    return weights | add


def openstl_dict(predictor: str, layers: int = 3, **options) -> dict[str, torch.Tensor]:
    """A state dict with OpenSTL's names and gate orders, every number another."""
    model = net(predictor, layers, **BASE, image_size=(8, 12), **options)
    found = {}
    for name, tensor in model.state_dict().items():
        name = official_name(name, predictor)
        if predictor == "e3d_lstm" and name == "conv_last.weight":
            tensor = tensor[:, :, 0, 0].unflatten(1, (8, -1))[..., None, None]
        found[name] = torch.randn_like(tensor)
    return found


def conv_tt_dict(order: int = 2, lags: int = 2) -> dict[str, torch.Tensor]:
    weights = {}
    for level in range(order):
        last = level == order - 1
        weights[f"layers_.{level}.weight"] = torch.randn(3, 4, 5, 5, lags)
        weights[f"layers_.{level}.bias"] = torch.randn(3)
        weights[f"layers.{level}.weight"] = torch.randn(16 if last else 3, 6 if last else 3, 5, 5)
        weights[f"layers.{level}.bias"] = torch.randn(16 if last else 3)
    return weights
