"""The weights that a new run begins with, see `Config.init_from`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..models import MotionRNN
from ..models.checkpoints.description import present_arguments
from ..models.checkpoints.loading import Found, find_model, in_words
from ..models.variants import OPTIONS
from .config import Config
from .runs import RunError, checkpoint_file, load_run, settings_of


def load_weights(model: MotionRNN, source: str, config: Config) -> None:
    """Give a new run's model the weights of `config.init_from`: of a run's folder or checkpoint, as `load_run` chooses,
    or of another checkpoint that `models.load_checkpoint` knows. A warning names what the model was trained with
    otherwise, which is the user's choice, and of weights alone what no tensor shows.

    Raises:
        RunError: tensors that do not fit, by name; of a public program's checkpoint also arguments of the model that it
            was not trained with.
    """
    path = checkpoint_file(Path(source))
    if settings_of(path) is not None:
        found = Found(load_run(path).model, {}, [], is_own=True)
    else:
        found = find_model(path, in_channels=config.channels, patch_size=config.patch_size)
    weights, ours = found.model.state_dict(), model.state_dict()
    tensors = [
        f"{name} is {_shape(weights, name)} there, {_shape(ours, name)} here"
        for name in sorted(ours.keys() | weights.keys())
        if _shape(weights, name) != _shape(ours, name)
    ]
    there, here = (
        _compared(found, bool(tensors)),
        _compared(Found(model, {}, [], found.is_own), bool(tensors)),
    )
    differ = {name: (there[name], here[name]) for name in there if there[name] != here.get(name)}
    if tensors or (differ and not found.is_own):
        settings = [f"{name} is {theirs} there, {own} here" for name, (theirs, own) in differ.items()]
        more = f" and {len(tensors) - 3} tensors more" if len(tensors) > 3 else ""
        raise RunError(f"{source} (--init-from) does not fit: {'; '.join(settings + tensors[:3])}{more}")
    model.load_state_dict(weights)
    if differ:
        settings = [f"{name} {theirs}, this run has {own}" for name, (theirs, own) in differ.items()]
        warnings.warn(f"{source} (--init-from) was trained with {'; '.join(settings)}", stacklevel=2)
    if unknown := {name: here[name] for name in found.assumed if name in here}:
        warnings.warn(
            f"{source} (--init-from) holds weights alone: that they were trained with {in_words(unknown)}, as this run "
            "has it, no tensor shows",
            stacklevel=2,
        )


def _compared(found: Found, all_of_them: bool = False) -> dict[str, Any]:
    """The known arguments of a model that what its weights compute depends on, or `all_of_them`."""
    made = present_arguments(found.model)
    left_out = {"variant", "image_size", "zero_init", *found.assumed}
    if not found.is_own:  # the choice of a user of the weights, in the public programs too
        left_out |= {"init_state", "max_offset"}
    if not found.model.interfaces and not all_of_them:
        left_out |= {"transient", "trend", *OPTIONS} - {"init_state", "highway_first"}
    if not found.model.highway and not all_of_them:
        left_out |= {"highway_first"}
    return {name: value for name, value in made.items() if name not in left_out}


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return "x".join(map(str, tensors[name].shape)) or "a number" if name in tensors else "absent"
