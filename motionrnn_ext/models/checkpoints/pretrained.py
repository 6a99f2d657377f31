"""Folders of weights: a safetensors file, and the arguments of its MotionRNN beside it as JSON.

model.safetensors    the tensors of the state dict
config.json          "arguments", those of MotionRNN; and of a run's model "settings" and "step", see `motionrnn export`

No file of such a folder can run code. Other libraries for models have the same two names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files import write_atomically, write_json
from ...pretrained import shipped, shipped_folder
from ..motion_rnn import MotionRNN
from .description import plain, present_arguments
from .loading import find_model
from .own_code import own_code
from .reading import ARGUMENTS, CONFIG, WEIGHTS, check_tensors, needs_safetensors
from .reparametrised import plain_weights

_OF_HUB = re.compile(r"[\w.-]+/[\w.-]+")


def save_pretrained(
    model: MotionRNN,
    folder: str | os.PathLike[str],
    *,
    float16: bool = False,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the two files of a folder of weights, see `MotionRNN.save_pretrained`. `more` is added to config.json."""
    where = f"folder {os.fspath(folder)!r}"
    with needs_safetensors(where):
        from safetensors.torch import save
    if found := own_code(model):
        raise ValueError(f"model has code of its own, which no file of weights holds: {'; '.join(found)}")
    arguments = present_arguments(model)
    if isinstance(arguments["alpha"], Tensor):  # a learned alpha is among the tensors
        del arguments["alpha"]
    try:
        arguments = plain(arguments)
    except TypeError:
        raise TypeError(
            "model has arguments that are no plain values, which config.json cannot hold; they should be numbers, "
            "words, or lists and dicts of them"
        ) from None
    tensors, _ = plain_weights(model.state_dict(), "model")
    check_tensors(tensors, "model")
    # Each tensor has its own memory: the library refuses those that share it.
    kept = {name: _stored(tensor, float16) for name, tensor in tensors.items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    with write_atomically(Path(folder) / WEIGHTS) as part:
        part.write_bytes(save(kept, {"format": "pt"}))
    write_json(Path(folder) / CONFIG, {ARGUMENTS: arguments, **(more or {})}, short_lists=True)


def load_pretrained(source: str | os.PathLike[str], *, revision: str | None = None) -> MotionRNN:
    """Return the model of a folder of weights, in evaluation mode, see `MotionRNN.from_pretrained`."""
    return find_model(_folder(source, revision)).model.eval()


def _stored(tensor: Tensor, float16: bool) -> Tensor:
    """Return a contiguous copy on the CPU."""
    tensor = tensor.detach().to("cpu", torch.float16 if float16 else None)
    return tensor.clone(memory_format=torch.contiguous_format)


def _folder(source: str | os.PathLike[str], revision: str | None) -> Path:
    """Return the folder of a path, of shipped weights, or of weights that the Hugging Face Hub has."""
    name, path = os.fspath(source), Path(source)
    if path.is_dir():
        return path
    if (folder := shipped_folder(name)) is not None:
        return folder
    if path.exists() or not _OF_HUB.fullmatch(name):
        raise FileNotFoundError(
            f"weights {name!r} are not there; they should be a folder, OWNER/NAME on the Hugging Face Hub, or one of "
            f"{', '.join(shipped())}, which come with the package"
        )
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"weights {name!r} need the package huggingface_hub: pip install huggingface_hub; or give a folder"
        ) from None
    return Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
