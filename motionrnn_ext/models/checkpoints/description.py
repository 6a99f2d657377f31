"""The description of a model in its state dict: the arguments it was made with, in PyTorch's metadata.

`state_dict()` and `torch.save` keep the metadata beside the tensors; names and tensors stay as they are, and
`load_state_dict` ignores it. It is lost if a program copies the tensors into a dict of its own, or into a safetensors
file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from torch import Tensor, nn

from ...layers.cells import E3DLSTMCell, RecurrentCell, cell_options
from ...layers.motion_gru import MotionGRU
from ...layers.motion_gru_cell import MotionGRUCell
from .own_code import own_code

_KEY = "motionrnn_ext"
_OWN_CODE = "motionrnn_ext.own_code"


def describe(module: nn.Module, state_dict: Any, prefix: str, local_metadata: dict[str, Any]) -> None:
    """Put the arguments that a MotionRNN was made with into the metadata, if all of them are plain values.

    Phrases for code of the user's, which no file of weights holds, are put beside them.
    """
    if found := own_code(module):
        local_metadata[_OWN_CODE] = found
    try:
        arguments = present_arguments(module)
        if isinstance(arguments["alpha"], Tensor):  # a learned alpha is among the tensors
            del arguments["alpha"]
        local_metadata[_KEY] = plain(arguments)
    except TypeError:
        # With an object in the metadata, only unsafe loading would read the file.
        return


def arguments_of(module: Any) -> dict[str, Any]:
    """Return the arguments that a MotionRNN was made with, read off its parts and options."""
    cell, grus = module.cells[0], list(module.interfaces)
    own_options = [name for name in cell_options(module.predictor) if hasattr(cell, name)]
    return {
        "predictor": module.predictor,
        "in_channels": module.in_channels,
        "hidden_channels": module.hidden_channels,
        "patch_size": module.patch_size,
        "variant": "official" if module.options.carry == "motion" else "paper",
        "filter_size": cell.filter_size,
        "layer_norm": cell.layer_norm,
        "image_size": module.image_size,
        "motion_gru": bool(grus),
        "highway": module.highway,
        "transient": not grus or grus[0].cell.transient,
        "trend": module.trend,
        "compat": cell.compat,
        "cell_options": {name: getattr(cell, name) for name in own_options},
        **{entry.name: getattr(module.options, entry.name) for entry in fields(module.options)},
    }


def present_arguments(module: Any) -> dict[str, Any]:
    """Return the arguments that make this MotionRNN as it is now, after changes to its attributes and its parts.

    Raises:
        TypeError: its layers differ, so that no arguments make this model.
    """
    found = {**module.arguments, "highway": module.highway}
    found |= {name: getattr(module.options, name) for name in ("carry", "init_state", "residual")}
    found["highway_first"] = found["highway_first"] and module.conv_first is not None
    interfaces = [interface for interface in module.interfaces if isinstance(interface, MotionGRU)]
    motion = [interface.cell for interface in interfaces if isinstance(interface.cell, MotionGRUCell)]
    for name in ("alpha", "max_offset", "trend_gate", "transient", "trend"):
        _set_common(found, name, [_plain_number(getattr(cell, name)) for cell in motion])
    _set_common(found, "gate_side", [interface.gate_side for interface in interfaces])
    cells = [cell for cell in module.cells if isinstance(cell, RecurrentCell)]
    _set_common(found, "compat", [cell.compat for cell in cells])
    history = [cell.history for cell in cells if isinstance(cell, E3DLSTMCell)]
    if any(value != found["cell_options"].get("history") for value in history):
        found["cell_options"] = dict(found["cell_options"])
        _set_common(found["cell_options"], "history", history)
    return found


def _plain_number(value: Any) -> Any:
    """Return the value of a tensor that is no Parameter, and so not in the state dict; anything else as it is."""
    is_apart = isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and not value.is_meta
    return value.item() if is_apart else value


def _set_common(found: dict[str, Any], name: str, values: list[Any]) -> None:
    """Set an argument to the value that all layers have; raise a TypeError if they differ."""
    if not values:
        return
    learned = [isinstance(value, Tensor) for value in values]
    if any(learned) != all(learned) or (not any(learned) and len(set(values)) > 1):
        raise TypeError(f"{name} differs among the layers")
    found[name] = values[0]


def descriptions(state_dict: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the arguments of every MotionRNN that a state dict describes, by the module's path."""
    return {
        path: dict(entry[_KEY])
        for path, entry in _metadata(state_dict).items()
        if isinstance(entry.get(_KEY), Mapping)
    }


def own_code_of(state_dict: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the phrases of `own_code` for every MotionRNN that a state dict describes, by the module's path."""
    return {
        path: [str(phrase) for phrase in entry[_OWN_CODE]]
        for path, entry in _metadata(state_dict).items()
        if isinstance(entry.get(_OWN_CODE), list)
    }


def _metadata(state_dict: Mapping[str, Any]) -> dict[str, Mapping[Any, Any]]:
    """Return a state dict's metadata: a mapping for every module, by its path."""
    found = getattr(state_dict, "_metadata", None)
    entries = found.items() if isinstance(found, Mapping) else ()
    return {path: entry for path, entry in entries if isinstance(path, str) and isinstance(entry, Mapping)}


def arguments_of_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a run's model, without in_channels, from the settings that its checkpoints hold."""
    renamed = {"hidden": "hidden_channels"}
    names = [
        "predictor",
        "cell_options",
        "compat",
        "hidden",
        "patch_size",
        "filter_size",
        "layer_norm",
        "variant",
    ]
    names += ["image_size", "motion_gru", "highway", "transient", "trend"]
    overrides = settings.get("overrides")
    found = {renamed.get(name, name): settings[name] for name in names if name in settings}
    if found.get("compat") == "none":
        found["compat"] = None
    return {**found, **(overrides if isinstance(overrides, Mapping) else {})}


def plain(value: Any) -> Any:
    """Return `value` in Python's own types, which torch.load reads with weights_only=True.

    Raises:
        TypeError: it is a value of any other type, or holds one.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (Integral, Real)):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map(plain, value))
    raise TypeError
