"""Run OpenSTL's ConvLSTM, PredRNN, MIM and E3D-LSTM on our weights and inputs: its unmodified networks.

They come from a checkout of chengtan9907/OpenSTL. The library's packages import every model that it has, and what those
need; empty packages take their place, so that a network needs torch alone.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from torch import Tensor, nn

from motionrnn_ext import MotionRNN
from motionrnn_ext.models.checkpoints.names import to_official, without_dead

from ..cases import ModelSetting

MARK = Path("openstl", "models", "predrnn_model.py")
# The file and the class of each predictor's network.
NETWORKS = {
    "convlstm": ("convlstm_model", "ConvLSTM_Model"),
    "predrnn": ("predrnn_model", "PredRNN_Model"),
    "mim": ("mim_model", "MIM_Model"),
    "e3d_lstm": ("e3dlstm_model", "E3DLSTM_Model"),
}
# What the networks import from the package openstl.modules, by file.
CELLS = {
    "convlstm_modules": ("ConvLSTMCell",),
    "predrnn_modules": ("SpatioTemporalLSTMCell",),
    "mim_modules": ("MIMBlock", "MIMN"),
    "e3dlstm_modules": ("Eidetic3DLSTMCell",),
}


class OpenSTL:
    """The networks of a checkout, in float32."""

    def __init__(self, checkout: Path) -> None:
        if not (checkout / MARK).is_file():
            raise ValueError(
                f"--openstl: {checkout} holds no {MARK}; it should be a checkout of chengtan9907/OpenSTL"
            )
        for name in ("openstl", "openstl.modules", "openstl.models"):
            sys.modules[name] = package = ModuleType(name)
            package.__path__ = [str(checkout.joinpath(*name.split(".")))]
        for file, names in CELLS.items():
            module = importlib.import_module(f"openstl.modules.{file}")
            for name in names:
                setattr(sys.modules["openstl.modules"], name, getattr(module, name))

    def network(self, model: MotionRNN, setting: ModelSetting, device: str) -> nn.Module:
        """Return `(frames, mask) -> (predictions, loss)` on folded frames, channels last, with the model's weights."""
        file, name = NETWORKS[model.predictor]
        made = getattr(importlib.import_module(f"openstl.models.{file}"), name)
        configs = SimpleNamespace(
            in_shape=(setting.given, setting.channels, setting.size, setting.size), patch_size=setting.patch,
            filter_size=setting.filter_size, stride=1, layer_norm=0, pre_seq_length=setting.given,
            aft_seq_length=setting.predicted, total_length=setting.total, reverse_scheduled_sampling=0,
        )  # fmt: skip
        network: nn.Module = made(len(setting.hidden), list(setting.hidden), configs)
        state = network.state_dict()
        _, dead = without_dead(state, model.predictor)
        weights = to_official(model.state_dict(), model.predictor)
        network.load_state_dict(weights | {name: state[name] for name in dead}, strict=True)
        return network.to(device)


def live_parameters(network: nn.Module, predictor: str) -> dict[str, Tensor]:
    """Return the parameters that predictions read, by name."""
    return without_dead(dict(network.named_parameters()), predictor)[0]


def start_afresh(network: nn.Module) -> None:
    """Make MIM's blocks forget what they keep from one sequence to the next."""
    for module in network.modules():
        if hasattr(module, "convlstm_c"):
            block: Any = module
            block.convlstm_c = None
