"""The weights in a checkpoint, whichever program wrote it: what holds them, what is put before their names.

A program nests its state dict in a dict of its own ("net_param", "state_dict", "model", ...), beside an optimiser's and
an epoch; wrappers put words before or between the parts of a name. Both are looked for by the names that a model known
here has, so that none of them needs to be known.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

from ...files import load_tensors
from .description import descriptions, of_settings
from .names import refuse_foreign
from .reparametrised import plain_weights

Source = str | os.PathLike[str] | BinaryIO | Mapping[str, Any]
RUN_SETTINGS = "motionrnn_config"  # beside the state dict in a checkpoint of `motionrnn train`
# Of the modules that wrap another one: DataParallel and DDP, torch.compile, FSDP, checkpoint_wrapper.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
LAYERS = re.compile(r"((?:[^.]+\.)*?)(?:cells|cell_list|stlstm_layer)\.\d+\.")
# Which of several is meant, first to last; the others are named in a warning.
_CONTAINERS = ("net_param", "state_dict", "model_state_dict", "model", "net", "params", "params_ema")
_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}


class Weights(NamedTuple):
    """What a checkpoint holds of one model."""

    tensors: dict[str, Tensor]  # copies, by the names that the model itself gives them
    arguments: dict[str, Any] | None  # that the model was made with, where the checkpoint says so
    where: str  # what messages call the checkpoint
    left_out: list[str]  # what is there besides: a sentence for each kind
    pruned: list[str]  # names of those that are weights times pruning masks


def read_weights(
    source: Source, map_location: str | torch.device = "cpu", layers: re.Pattern[str] = LAYERS
) -> Weights:
    """Return the weights in a file by torch.save or safetensors, or in a dict; `layers` are names to know a model by.

    Raises:
        TypeError: no file and no dict. OSError: no such file, or a folder. ModuleNotFoundError: safetensors is missing.
        ValueError: a damaged file or one that asks for code; no tensors; tensors of several models, without values, or
            of several dtypes; weights of parametrised modules.
    """
    content, where = _content(source, map_location)
    state, left_out = _state_dict(content, where, layers)
    named = {name: t for name, t in state.items() if isinstance(name, str) and isinstance(t, Tensor)}
    kept = {name: tensor for name, tensor in named.items() if not _is_counter(name, tensor)}
    path = _path(kept, where, layers)
    tensors = {}
    for name, tensor in kept.items():
        if (clean := _unwrapped(name)).startswith(path):
            tensors[clean.removeprefix(path)] = tensor
    if beside := [name for name in kept if not _unwrapped(name).startswith(path)]:
        left_out.append(f"{len(beside)} tensors beside those of {path}*: {some(beside)}")
    tensors, pruned = plain_weights(tensors, where)
    _check(tensors, where)
    # Copies, because the model is going to own and train them.
    copies = {name: tensor.detach().to_dense().clone() for name, tensor in tensors.items()}
    return Weights(copies, _arguments(state, content, path), where, left_out, pruned)


def some(names: list[str], limit: int = 6) -> str:
    """Return the first few names, and how many there are besides."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def read_file(path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> Any:
    """Return what a file by torch.save or safetensors holds. No code of it can run. Errors: as `read_weights`."""
    torch.empty(0, device=map_location)  # an error of the device is not the file's
    if Path(path).is_dir():
        found = [p for p in ("checkpoints/best.ckpt", "checkpoints/last.ckpt") if (Path(path) / p).is_file()]
        example = f", such as its {found[0]}" if found else ""
        raise IsADirectoryError(f"checkpoint {os.fspath(path)!r} is a folder; it should be a file{example}")
    where = f"checkpoint {os.fspath(path)!r}"
    with open(path, "rb") as file:
        return _load(file, map_location, where, os.fspath(path).endswith(".safetensors"))


def _content(source: Source, map_location: str | torch.device) -> tuple[Any, str]:
    if isinstance(source, Mapping):
        return source, "state dict"
    if isinstance(source, nn.Module):
        raise TypeError(
            f"source is a {type(source).__name__}; it should be a file or a state dict: pass its state_dict()"
        )
    if isinstance(source, (str, os.PathLike)):
        return read_file(source, map_location), f"checkpoint {os.fspath(source)!r}"
    if hasattr(source, "read") and hasattr(source, "seek"):
        return _load(source, map_location, "checkpoint"), "checkpoint"
    raise TypeError(f"source is a {type(source).__name__}; it should be a file or a state dict")


def _load(file: BinaryIO, map_location: str | torch.device, where: str, is_safetensors: bool = False) -> Any:
    start = file.tell()
    if is_safetensors or _is_safetensors(file.read(9), file.seek(0, os.SEEK_END) - start):
        file.seek(start)
        return _load_safetensors(file.read(), map_location, where)
    file.seek(start)
    try:
        return load_tensors(file, map_location)
    except Exception as error:
        said = str(error)
    if asked := re.search(r"GLOBAL (\S+)", said):
        raise ValueError(
            f"{where} is no file of weights alone: it asks for {asked[1]}, and such a file could run code"
        )
    if "TorchScript" in said:
        raise ValueError(
            f"{where} is a TorchScript program; it should be a file of weights: torch.save its state_dict()"
        )
    raise ValueError(f"{where} is truncated or no file of weights")


def _is_safetensors(start: bytes, size: int) -> bool:
    """Whether a file begins as safetensors does: the length of the header in eight bytes, then the header in JSON."""
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _load_safetensors(data: bytes, map_location: str | torch.device, where: str) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{where} needs the package safetensors: pip install safetensors") from None
    try:
        tensors = dict(load(data))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except Exception:  # its own class for a damaged file, and others of torch
        raise ValueError(f"{where} is truncated or no file of weights") from None
    # Its save_model leaves out tied tensors, and notes the names of those that are the same.
    tied = {name: kept for name, kept in (header.get("__metadata__") or {}).items() if kept in tensors}
    tensors |= {name: tensors[kept] for name, kept in tied.items() if name not in tensors}
    return {name: tensor.to(map_location) for name, tensor in tensors.items()}


def _state_dict(content: Any, where: str, layers: re.Pattern[str]) -> tuple[Mapping[Any, Any], list[str]]:
    """The dict with the names of a model, wherever it is nested, else the one with most tensors; what it left out."""
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where} holds no state dict but a {type(content).__name__}")
    found = dict(_nested(content))
    models = [at for at, held in found.items() if any(layers.match(n) for n in held if isinstance(n, str))]
    if len(models) > 1:
        rank = {name: i for i, name in enumerate(_CONTAINERS)}
        models.sort(key=lambda at: [rank.get(name, len(rank)) for name in at])
    at = models[0] if models else max(found, key=lambda at: len(found[at]), default=None)
    if at is None:
        raise ValueError(f"{where} has entries that are not tensors: {some([str(name) for name in content])}")
    others = [".".join(other) for other in models[1:]]
    return found[at], [f"the weights {some(others)}, for those of {'.'.join(at)}"] if others else []


def _nested(content: Mapping[Any, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every dict within `content` that holds tensors by name, and the keys that lead to it."""
    if any(isinstance(name, str) and isinstance(held, Tensor) for name, held in content.items()):
        yield at, content
    for name, held in content.items():
        if isinstance(name, str) and isinstance(held, Mapping) and len(at) < 4:
            yield from _nested(held, (*at, name))


def _is_counter(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a count or a score beside the weights, such as `n_averaged` of AveragedModel, or what thop
    leaves in every module."""
    if name.rpartition(".")[2] in ("total_ops", "total_params"):
        return True
    return tensor.dim() == 0 and ("." not in name or not tensor.is_floating_point())


def _unwrapped(name: str) -> str:
    """A name without the parts that wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _path(tensors: Mapping[str, Tensor], where: str, layers: re.Pattern[str]) -> str:
    """What stands before the names of the model, such as "network."; "" where there is nothing, or no model."""
    clean = [_unwrapped(name) for name in tensors]
    paths = list(dict.fromkeys(match[1] for match in map(layers.match, clean) if match))
    if len(paths) > 1 or len(set(clean)) < len(clean):
        refuse_foreign(clean, where)  # PhyDNet has two such lists
        several = " and ".join(repr(path) for path in paths) if len(paths) > 1 else "a wrapped one and itself"
        raise ValueError(
            f"{where} holds several models, {several}; it should be one: pick its tensors by their names"
        )
    return paths[0] if paths else ""


def _check(tensors: Mapping[str, Tensor], where: str) -> None:
    if not tensors:
        raise ValueError(f"{where} holds no weights")
    # A learned number may be of another dtype than the weights.
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.dim()}
    if len(dtypes) > 1 or not dtypes <= _DTYPES:
        found = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"{where} has tensors of {found}; they should be of one floating-point dtype")
    if empty := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise ValueError(f"{where} has tensors on the device meta, without values: {some(empty)}")


def _arguments(state: Mapping[Any, Any], content: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """What the model was made with, as its state dict says, or the settings of the run beside it."""
    found = {_unwrapped(module): arguments for module, arguments in descriptions(state).items()}
    if path.rstrip(".") in found:
        return found[path.rstrip(".")]
    if len(found) == 1:
        return next(iter(found.values()))
    settings = content.get(RUN_SETTINGS)
    return of_settings(settings) if isinstance(settings, Mapping) else None
