"""Load the weights that a new run starts with, see `Config.init_from`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..caller import stacklevel_of_user
from ..layers.cells import cell_options
from ..models import MotionRNN
from ..models.checkpoints.description import present_arguments
from ..models.checkpoints.loading import Found, find_model, in_words
from ..models.variants import OPTIONS
from .config import Config
from .runs import RunError, checkpoint_file, load_run, settings_of


def load_weights(model: MotionRNN, source: str, config: Config) -> None:
    """Load weights into the model of a new run. `source` is the value of `config.init_from`.

    It is a run's folder or checkpoint, as for `load_run`, or another checkpoint that `models.load_checkpoint` knows.
    A warning names the arguments that differ from those that a run's weights were trained with, and for a file of
    weights alone the arguments that its tensors do not show.

    Raises:
        RunError: tensors do not fit, which are named; or a public program's weights were trained with other arguments.
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
    there = _known_arguments(found, bool(tensors))
    here = _known_arguments(Found(model, {}, [], found.is_own), bool(tensors))
    differ = {name: (there[name], here[name]) for name in there if name in here and there[name] != here[name]}
    if tensors or (differ and not found.is_own):
        settings = [
            f"{name} is {_text(theirs)} there, {_text(own)} here" for name, (theirs, own) in differ.items()
        ]
        more = f" and {len(tensors) - 3} tensors more" if len(tensors) > 3 else ""
        raise RunError(f"{source} (--init-from) does not fit: {'; '.join(settings + tensors[:3])}{more}")
    model.load_state_dict(weights)
    for sentence in found.left_out:
        warnings.warn(f"{source} (--init-from): left out {sentence}", stacklevel=stacklevel_of_user())
    if found.pruned:
        warnings.warn(
            f"{source} (--init-from): applied the pruning masks of {found.pruned}",
            stacklevel=stacklevel_of_user(),
        )
    if differ:
        settings = [f"{name} {theirs}, this run has {own}" for name, (theirs, own) in differ.items()]
        warnings.warn(
            f"{source} (--init-from) was trained with {'; '.join(settings)}", stacklevel=stacklevel_of_user()
        )
    if unknown := {name: here[name] for name in found.assumed if name in here}:
        warnings.warn(
            f"{source} (--init-from) holds weights alone: its tensors do not show if they were trained with "
            f"{in_words(unknown)}, as this run is",
            stacklevel=stacklevel_of_user(),
        )


def _known_arguments(found: Found, also_unused: bool) -> dict[str, Any]:
    """Return the known arguments of a model that change what its weights compute.

    `also_unused` adds those of parts that the model lacks, which explain why tensors do not fit.
    """
    made = present_arguments(found.model)
    # An option that is left at its default is an attribute of the cells alone.
    cell = found.model.cells[0]
    options = {n: getattr(cell, n) for n in cell_options(found.model.predictor) if hasattr(cell, n)}
    plain = {
        name: value for name, value in options.items() if value is None or isinstance(value, (int, float))
    }
    made["cell_options"] = {**plain, **made["cell_options"]}
    left_out = {"variant", "image_size", "zero_init", *found.assumed}
    if not found.is_own:  # the public programs leave these to the user of the weights
        left_out |= {"init_state", "max_offset"}
    if not found.model.interfaces and not also_unused:
        left_out |= {"transient", "trend", *OPTIONS} - {"init_state", "highway_first"}
    if not found.model.highway and not also_unused:
        left_out |= {"highway_first"}
    return {name: value for name, value in made.items() if name not in left_out}


def _text(value: Any) -> str:
    """Return an argument as a message shows it."""
    return f"learned ({value.item():.4g})" if isinstance(value, Tensor) else str(value)


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return "x".join(map(str, tensors[name].shape)) or "a number" if name in tensors else "absent"
