"""The cases of OpenSTL's MIM and E3D-LSTM; families are named as in test_golden.py."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from recording import Case, Program, Tensors, normal, redrawn, sampling_mask, uniform
from torch import nn

MIM, E3D, ST_LSTM = (f"openstl/modules/{name}_modules.py" for name in ("mim", "e3dlstm", "predrnn"))
MIM_NET, E3D_NET = (f"openstl/models/{name}_model.py" for name in ("mim", "e3dlstm"))
PROGRAM = Program(
    "chengtan9907/OpenSTL",
    "c74deb5d4c3da585291f9f18281f3fefdbba3a54",
    {
        MIM: "67c006b128b7dd8f8798684b823be7181ddcf8e0",
        E3D: "5430ffe1119cecbab88614ee4a1cad1b140a2893",
        ST_LSTM: "81290ce4ea3f2bcd33f06384bb8d37b3100a792f",
        MIM_NET: "0ee97bd0581f7a71cd477b15a28d87a31c221138",
        E3D_NET: "047ef1850503bf5547d8d08508fd693bfcecfc26",
    },
)
NETS = {MIM_NET: "MIM_Model", E3D_NET: "E3DLSTM_Model"}
# What the models import from the package `openstl.modules`.
EXPORTS = {MIM: ("MIMBlock", "MIMN"), E3D: ("Eidetic3DLSTMCell",), ST_LSTM: ("SpatioTemporalLSTMCell",)}


def importer(checkout: Path) -> Callable[[str], Any]:
    """Imports files of the checkout by path, after comparing them with the commit's.

    The packages themselves import every model of the library and what those need; empty ones take their place.
    """
    PROGRAM.verify(checkout)
    for name in ("openstl", "openstl.modules", "openstl.models"):
        sys.modules[name] = package = ModuleType(name)
        package.__path__ = [str(checkout.joinpath(*name.split(".")))]

    def load(file: str) -> Any:
        return importlib.import_module(file.removesuffix(".py").replace("/", "."))

    for file, names in EXPORTS.items():
        for name in names:
            setattr(sys.modules["openstl.modules"], name, getattr(load(file), name))
    return load


def cases() -> dict[str, Callable[..., Case]]:
    cell = {"b": 2, "h": 4, "w": 3, "f": 3}
    e3d = {"c_in": 3, "c": 2, "b": 2, "f": 3}
    mim_size = {"in_shape": [2, 1, 4, 6], "aft_seq_length": 3, "patch_size": 2, "filter_size": 3}
    e3d_size = {"in_shape": [2, 1, 4, 6], "aft_seq_length": 2, "patch_size": 2, "filter_size": 5}
    e3d_deep = {**e3d_size, "in_shape": [2, 1, 3, 4], "patch_size": 1}
    plain, normed = ({"layer_norm": on, "reverse_scheduled_sampling": on} for on in (0, 1))
    return {
        "mimblock_f3_ln0_b2_4x3_chain3": partial(mim_block, c=3, **cell, norm=0, steps=3),
        "mimblock_f3_ln1_b2_4x3": partial(mim_block, c=2, **cell, norm=1),
        "mimn_f3_ln0_b2_4x3": partial(mim_n, c=3, **cell, norm=0),
        "e3dcell_ln0_tau1_b2_3x4": partial(e3d_cell, **e3d, h=3, w=4, norm=0, tau=1),
        "e3dcell_ln1_tau2_b2_2x3": partial(e3d_cell, **e3d, h=2, w=3, norm=1, tau=2),
        "net_00_mim_f3_ln0_rss0_b2_4x6": partial(net, file=MIM_NET, layers=3, configs=mim_size | plain),
        "net_01_mim_f3_ln1_rss1_b2_4x6": partial(net, file=MIM_NET, layers=2, configs=mim_size | normed),
        "net_02_e3dlstm_f5_ln0_rss0_b2_3x4": partial(net, file=E3D_NET, layers=2, configs=e3d_deep | plain),
        "net_03_e3dlstm_f5_ln1_rss1_b2_4x6": partial(net, file=E3D_NET, layers=1, configs=e3d_size | normed),
    }


def mim_kwargs(c: int, h: int, w: int, f: int, norm: int) -> dict[str, int]:
    kwargs = {"in_channel": c, "num_hidden": c, "height": h, "width": w, "filter_size": f}
    return {**kwargs, "stride": 1, "layer_norm": norm}


def mim_block(g, module_of, *, c: int, b: int, h: int, w: int, f: int, norm: int, steps: int = 1) -> Case:
    """One step from a given S, or a chain of steps from none."""
    kwargs = mim_kwargs(c, h, w, f, norm)
    lead = (b,) if steps == 1 else (steps, b)
    inputs = {name: normal(g, *lead, c, h, w) for name in ("x", "diff_h")}
    carried = ("convlstm_c",) if steps == 1 else ()
    inputs |= {name: normal(g, b, c, h, w) for name in ("h", "c", "m", *carried)}

    def call(module: nn.Module, given: Tensors) -> tuple[Tensors, Tensors]:
        module.convlstm_c, hidden = given.get("convlstm_c"), []
        state = given["h"], given["c"], given["m"]
        for x, difference in zip(*(given[name].reshape(steps, b, c, h, w) for name in ("x", "diff_h"))):
            state = module(x, difference, *state)
            hidden.append(state[0])
        outputs = {"h": torch.stack(hidden).reshape(*lead, c, h, w), "c": state[1], "m": state[2]}
        outputs["convlstm_c"], module.convlstm_c = module.convlstm_c, None
        return outputs, {}

    start = "is None before the first call" if steps > 1 else "is in/convlstm_c before the call"
    note = f"the attribute convlstm_c {start}; the program detaches it in every call"
    module = redrawn(module_of(MIM).MIMBlock(**kwargs), g)
    return Case(MIM, kwargs, module, inputs, call, {"T": steps, "note": note})


def mim_n(g, module_of, *, c: int, b: int, h: int, w: int, f: int, norm: int) -> Case:
    kwargs = mim_kwargs(c, h, w, f, norm)
    inputs = {name: normal(g, b, c, h, w) for name in ("x", "h", "c")}

    def call(module: nn.Module, given: Tensors) -> tuple[Tensors, Tensors]:
        return dict(zip(("h", "c"), module(*given.values()))), {}

    return Case(MIM, kwargs, redrawn(module_of(MIM).MIMN(**kwargs), g), inputs, call)


def e3d_cell(g, module_of, *, c_in: int, c: int, b: int, h: int, w: int, f: int, norm: int, tau: int) -> Case:
    """`tau`: how many earlier C the cell attends to."""
    kwargs = {"in_channel": c_in, "num_hidden": c, "window_length": 2, "height": h, "width": w}
    kwargs |= {"filter_size": (2, f, f), "stride": 1, "layer_norm": norm}
    inputs = {"x": normal(g, b, c_in, 2, h, w)}
    inputs |= {name: normal(g, b, c, 2, h, w) for name in ("h", "c", "global_memory")}
    inputs["eidetic_cell"] = normal(g, b, tau * c, 2, h, w)

    def call(module: nn.Module, given: Tensors) -> tuple[Tensors, Tensors]:
        return dict(zip(("h", "c", "global_memory"), module(*given.values()))), {}

    note = "out/global_memory is the unchanged input; eidetic_cell is the earlier c, joined along dim 1"
    module = redrawn(module_of(E3D).Eidetic3DLSTMCell(**kwargs), g)
    return Case(E3D, kwargs, module, inputs, call, {"tau": tau, "note": note})


def net(g, module_of, *, file: str, layers: int, configs: dict) -> Case:
    """`configs` as the program's; two sequences, hidden states of two channels, masks between 0 and 1."""
    b, hidden = 2, [2] * layers
    n_input, n_output, p = configs["in_shape"][0], configs["aft_seq_length"], configs["patch_size"]
    lengths = {"pre_seq_length": n_input, "total_length": n_input + n_output}
    configs = {**configs, **lengths, "stride": 1}
    kwargs = {"num_layers": layers, "num_hidden": hidden, "configs": configs}
    c, h, w = configs["in_shape"][1:]
    folded = h // p, w // p, p * p * c
    sampled = n_input + n_output - 2 if configs["reverse_scheduled_sampling"] else n_output - 1
    inputs = {"frames": uniform(g, b, n_input + n_output, *folded)}
    inputs["mask_true"] = sampling_mask(g, "cont", b, sampled, *folded)

    def call(module: nn.Module, given: Tensors) -> tuple[Tensors, Tensors]:
        frames, loss = module(given["frames"], given["mask_true"])
        between = {}
        keeping = [block for block in module.modules() if hasattr(block, "convlstm_c")]
        if keeping:
            with torch.no_grad():
                between["frames_second_call"], _ = module(given["frames"], given["mask_true"])
        for block in keeping:
            block.convlstm_c = None
        return {"frames": frames, "loss": loss}, between

    meta = {"mask_kind": "cont"}
    if file == MIM_NET:
        meta["note"] = (
            "aux/frames_second_call: the same call once more, from the convlstm_c that the first left"
        )
    module = getattr(module_of(file), NETS[file])(layers, hidden, SimpleNamespace(**configs))
    return Case(file, kwargs, redrawn(module, g), inputs, call, meta)
