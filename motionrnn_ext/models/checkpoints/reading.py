"""Find the weights in a checkpoint, whichever program wrote it.

A program nests its state dict in a dict of its own ("net_param", "state_dict", "model" and others), beside the state of
an optimiser and an epoch, and wrappers put words before or between the parts of a name. The state dict is recognised by
the parameter names of a known model, so that neither the dict nor the wrapper needs to be known.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ...files import load_tensors, read_json
from .description import arguments_of_settings, descriptions, own_code_of
from .names import refuse_foreign
from .reparametrised import plain_weights

_T = TypeVar("_T")
Source = str | os.PathLike[str] | BinaryIO | Mapping[str, Any]
# The key of a run's settings, beside the state dict in a checkpoint of `motionrnn train`.
RUN_SETTINGS = "motionrnn_config"
# The two files of a folder of weights, see pretrained.py, and the key of the arguments in the second.
WEIGHTS, CONFIG, ARGUMENTS = "model.safetensors", "config.json", "arguments"
# Attributes by which wrappers hold a module: DataParallel and DDP, torch.compile, FSDP, checkpoint_wrapper.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
LAYERS = re.compile(r"((?:[^.]+\.)*?)(?:cells|cell_list|stlstm_layer)\.\d+\.")
# Keys of the dict that holds the model. If several do, the first of them counts, and a warning names the others.
_CONTAINERS = ("net_param", "state_dict", "model_state_dict", "model", "net", "params", "params_ema")
# Keys of dicts that have the weights' names and no weights of a model: the state of optimisers and callbacks.
_BESIDE = re.compile("optim|grad|momentum|exp_avg|callback", re.IGNORECASE)
_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}


class Weights(NamedTuple):
    """The weights of one model, as a checkpoint holds them.

    Attributes:
        tensors: copies of the weights, by the names that the model itself gives them.
        arguments: the arguments that the model was made with, or None if the checkpoint does not hold them.
        where: the name of the checkpoint in messages.
        left_out: a phrase for every kind of tensors that the checkpoint holds besides.
        pruned: names of the weights that were multiplied by pruning masks.
    """

    tensors: dict[str, Tensor]
    arguments: dict[str, Any] | None
    where: str
    left_out: list[str]
    pruned: list[str]


def read_weights(
    source: Source, map_location: str | torch.device = "cpu", layers: re.Pattern[str] = LAYERS
) -> Weights:
    """Return the weights in a file written by torch.save or safetensors, or in a dict.

    `layers` matches the names of a model's layers, by which its state dict is recognised.

    Raises:
        TypeError: source is neither a file nor a dict.
        OSError: the file does not exist, or is a folder.
        ModuleNotFoundError: the file is a safetensors file, and that package is not installed.
        ValueError: the file is damaged or asks for code; it holds no tensors; or they belong to several models, have no
            values, have several dtypes, or are weights of parametrised modules.
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
    if code := _of_model(own_code_of(state), path):
        left_out.append(f"code of its own that the model was saved with: {some(code)}")
    tensors, pruned = plain_weights(tensors, where)
    check_tensors(tensors, where)
    copies = {name: _copy(name, tensor, where) for name, tensor in tensors.items()}
    return Weights(copies, _arguments(state, content, path), where, left_out, pruned)


def some(names: list[str], limit: int = 6) -> str:
    """Return the first `limit` names as text, and the number of the others."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def read_file(path: str | os.PathLike[str], map_location: str | torch.device = "cpu") -> Any:
    """Return the content of a file written by torch.save or safetensors; errors are those of `read_weights`.

    No code in the file can run.
    """
    # A device that does not exist raises its own error here, before the file can be blamed.
    torch.empty(0, device=map_location)
    where, name = f"checkpoint {os.fspath(path)!r}", Path(path).name
    if Path(path).is_dir() and is_pretrained(Path(path)):
        path, name = Path(path) / WEIGHTS, WEIGHTS
    if Path(path).is_dir():
        raise IsADirectoryError(f"{where} is a folder; it should be a file{file_to_name(Path(path))}")
    if name.endswith(".index.json"):
        return _load_shards(Path(path), map_location, where)
    if (shard := re.search(r"(.*)-\d{5}-of-(\d{5})\.(\w+)$", name)) and int(shard[2]) > 1:
        index = f"{shard[1]}.{shard[3]}.index.json"
        raise ValueError(f"{where} is one of {int(shard[2])} shards; it should be their index, {index!r}")
    with open(path, "rb") as file:
        content = _load(file, map_location, where, os.fspath(path).endswith(".safetensors"))
    return _with_config(content, Path(path).parent) if name == WEIGHTS else content


def is_pretrained(folder: Path) -> bool:
    """Return whether a folder holds the two files of `MotionRNN.save_pretrained`."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def _with_config(tensors: dict[str, Tensor], folder: Path) -> dict[str, Any]:
    """Return the tensors as a checkpoint of `motionrnn train` holds them, with what config.json beside them says.

    Half precision, which only saves space there, becomes float32. Without a config.json of this package the tensors
    are returned as they are.

    Raises:
        ValueError: config.json is damaged.
    """
    try:
        config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{os.fspath(folder / CONFIG)!r} is no readable JSON file") from None
    if not isinstance(config, Mapping) or not isinstance(config.get(ARGUMENTS), Mapping):
        return tensors
    halves = (torch.float16, torch.bfloat16)
    state = {f"model.{n}": t.float() if t.dtype in halves else t for n, t in tensors.items()}
    content: dict[str, Any] = {"state_dict": state, ARGUMENTS: _with_tuples(config[ARGUMENTS])}
    if isinstance(config.get("settings"), Mapping):
        content |= {RUN_SETTINGS: dict(config["settings"]), "global_step": config.get("step") or 0}
    return content


def _with_tuples(value: Any) -> Any:
    """Return a value of JSON with tuples for its lists, as arguments have them."""
    if isinstance(value, Mapping):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def file_to_name(folder: Path) -> str:
    """Return which file to name in place of a folder of weights, as the end of a sentence, or ""."""
    if (folder / ".metadata").is_file():
        return ", which dcp_to_torch_save of torch.distributed.checkpoint.format_utils writes"
    usual = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "model.safetensors", "pytorch_model.bin")
    found = [name for name in usual if (folder / name).is_file()]
    found += sorted(path.name for path in folder.glob("*.index.json"))
    return f", such as its {found[0]}" if found else ""


def _load_shards(index: Path, map_location: str | torch.device, where: str) -> dict[str, Tensor]:
    """Return the tensors of all files that an index names, which lie beside it, as Hugging Face's programs write them.

    Raises:
        ValueError: the file is no such index, or its files do not hold exactly the tensors that it lists.
        OSError: a file is missing.
    """
    try:
        files = {str(tensor): str(name) for tensor, name in read_json(index)["weight_map"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{where} is no index of shards: it should be JSON with a weight_map") from None
    found: dict[str, Any] = {}
    for name in sorted(set(files.values())):
        if Path(name).name != name:
            raise ValueError(f"{where} names the shard {name!r}; it should be a file beside it")
        with open(index.parent / name, "rb") as file:
            held = _load(file, map_location, f"shard {name!r} of {where}", name.endswith(".safetensors"))
        if isinstance(held, Mapping):
            found |= {key: tensor for key, tensor in held.items() if files.get(key) == name}
    if absent := sorted(files.keys() - found.keys()):
        raise ValueError(f"{where} lists tensors that are not in its shards: {some(absent)}")
    return found


def _content(source: Source, map_location: str | torch.device) -> tuple[Any, str]:
    """Return the content of a file or dict, and its name in messages."""
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
    """Return the content of an open file; raise a ValueError if it holds more than weights."""
    start = file.tell()
    if is_safetensors or _is_safetensors(file.read(9), file.seek(0, os.SEEK_END) - start):
        file.seek(start)
        return _load_safetensors(file.read(), map_location, where)
    file.seek(start)
    try:
        return load_tensors(file, map_location)
    except Exception as error:
        said = str(error)
    if asked := re.search(r"GLOBAL (\S+)|, but got <class '([\w.]+)'>", said):
        raise ValueError(
            f"{where} holds more than weights: it asks for {asked[1] or asked[2]}, and such a file could run code"
        )
    if "TorchScript" in said:
        raise ValueError(
            f"{where} is a TorchScript program; it should be a file of weights: torch.save its state_dict()"
        )
    raise ValueError(f"{where} is truncated or no file of weights")


def _is_safetensors(start: bytes, size: int) -> bool:
    """Return whether a file begins as safetensors do: with eight bytes for the header's length, then JSON."""
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8


def _load_safetensors(data: bytes, map_location: str | torch.device, where: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, tied ones under each of their names."""
    with needs_safetensors(where):
        from safetensors.torch import load
    try:
        tensors = dict(load(data))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except Exception:  # for a damaged file safetensors and torch raise errors of several classes
        raise ValueError(f"{where} is truncated or no file of weights") from None
    # The save_model of safetensors leaves out tied tensors, and notes for each the name of the one that it kept.
    tied = {name: kept for name, kept in (header.get("__metadata__") or {}).items() if kept in tensors}
    tensors |= {name: tensors[kept] for name, kept in tied.items() if name not in tensors}
    return {name: tensor.to(map_location) for name, tensor in tensors.items()}


@contextmanager
def needs_safetensors(where: str) -> Iterator[None]:
    """Raise an error that says what to install if the block's import of safetensors fails."""
    try:
        yield
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{where} needs the package safetensors: pip install safetensors") from None


def _state_dict(content: Any, where: str, layers: re.Pattern[str]) -> tuple[Mapping[Any, Any], list[str]]:
    """Return the dict that has the names of a model, at any depth, and phrases for the models that it leaves out.

    Without a model it is the dict with most tensors.
    """
    if isinstance(content, Mapping) and not content:
        raise ValueError(f"{where} holds no weights")
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} holds no state dict but a {type(content).__name__}")
    found = dict(_nested(content))
    models = [at for at, held in found.items() if any(layers.match(n) for n in held if isinstance(n, str))]
    if len(models) > 1:
        rank = {name: i for i, name in enumerate(_CONTAINERS)}
        models.sort(key=lambda at: [any(map(_BESIDE.search, at)), [rank.get(name, len(rank)) for name in at]])
    at = models[0] if models else max(found, key=lambda at: len(found[at]), default=None)
    if at is None:
        raise ValueError(f"{where} has entries that are not tensors: {some([str(name) for name in content])}")
    others = [".".join(other) for other in models[1:]]
    return found[at], [f"the weights {some(others)}, for those of {'.'.join(at)}"] if others else []


def _nested(content: Mapping[Any, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every dict within `content` that holds tensors by name, after the keys that lead to it."""
    if any(isinstance(name, str) and isinstance(held, Tensor) for name, held in content.items()):
        yield at, content
    for name, held in content.items():
        if isinstance(name, str) and isinstance(held, Mapping) and len(at) < 4:
            yield from _nested(held, (*at, name))


def _is_counter(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is a count or a score beside the weights.

    Examples are `n_averaged` of AveragedModel, and the totals that thop puts into every module.
    """
    if name.rpartition(".")[2] in ("total_ops", "total_params"):
        return True
    return tensor.dim() == 0 and ("." not in name or not tensor.is_floating_point())


def _unwrapped(name: str) -> str:
    """Return a name without the parts that wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _path(tensors: Mapping[str, Tensor], where: str, layers: re.Pattern[str]) -> str:
    """Return the prefix of the names of the model, such as "network.", or "" if there is none or no model."""
    clean = [_unwrapped(name) for name in tensors]
    paths = list(dict.fromkeys(match[1] for match in map(layers.match, clean) if match))
    if len(paths) > 1 or len(set(clean)) < len(clean):
        refuse_foreign(clean, where)  # PhyDNet has two such lists
        several = " and ".join(repr(path) for path in paths) if len(paths) > 1 else "a wrapped one and itself"
        raise ValueError(
            f"{where} holds several models, {several}; it should be one: pick its tensors by their names"
        )
    return paths[0] if paths else ""


def check_tensors(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise a ValueError unless there are tensors, with values, of one floating-point dtype."""
    if not tensors:
        raise ValueError(f"{where} holds no weights")
    # A learned number, such as alpha, may have another dtype than the weights.
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.dim()}
    if len(dtypes) > 1 or not dtypes <= _DTYPES:
        found = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"{where} has tensors of {found}; they should be of one floating-point dtype")
    if parts := [name for name, tensor in tensors.items() if hasattr(tensor, "full_tensor")]:
        raise ValueError(
            f"{where} has {parts[0]} as a DTensor, which is spread over processes; gather it in all of them: "
            "tensor.full_tensor()"
        )
    if empty := [name for name, tensor in tensors.items() if _is_without_values(tensor)]:
        raise ValueError(f"{where} has tensors on the device meta, without values: {some(empty)}")


def _copy(name: str, tensor: Tensor, where: str) -> Tensor:
    """Return a dense copy, as the model is going to own and train it.

    Raises:
        ValueError: the shape is larger than the memory, which a sparse or expanded tensor of a small file may have.
    """
    try:
        return tensor.detach().to_dense().clone()
    # A GPU may be full because of other programs; the file is not to blame.
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, MemoryError):
        shape = tuple(tensor.shape)
        raise ValueError(f"{where} has {name} of shape {shape}, which is larger than the memory") from None


def _is_without_values(tensor: Tensor) -> bool:
    """Return whether a tensor is on the device "meta", or a FakeTensor of any device, whose storage is there."""
    return tensor.is_meta or (
        tensor.layout == torch.strided and tensor.untyped_storage().device.type == "meta"
    )


def _arguments(state: Mapping[Any, Any], content: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """Return the arguments of the model, from its state dict, from config.json, or from the settings of the run beside
    it, or None."""
    if (found := _of_model(descriptions(state), path)) is not None:
        return found
    if isinstance(given := content.get(ARGUMENTS), Mapping):
        return dict(given)
    settings = content.get(RUN_SETTINGS)
    return arguments_of_settings(settings) if isinstance(settings, Mapping) else None


def _of_model(by_path: Mapping[str, _T], path: str) -> _T | None:
    """Return the entry for the model at `path`, which is the only one if there is one alone, or None."""
    found = {_unwrapped(module): entry for module, entry in by_path.items()}
    return next(iter(found.values())) if len(found) == 1 else found.get(path.rstrip("."))
