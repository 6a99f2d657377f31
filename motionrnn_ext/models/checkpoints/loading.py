"""Checkpoints: of this package, and of the public programs MotionRNN-PredRNN (thuml/MotionRNN), PredRNN and ConvLSTM
(predrnn-pytorch, OpenSTL), MIM and E3D-LSTM (OpenSTL), and the cell of Conv-TT-LSTM (NVlabs).

Loading renames parameters and, where gates are packed in another order, permutes channels; no number changes.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ...layers.arguments import whole
from ...layers.cells import ConvTTLSTMCell
from ...layers.motion_gru import MotionGRU
from ..motion_rnn import MotionRNN
from ..variants import OPTIONS
from .architecture import Read, architecture, frame_layout, misfits, n_layers, read_own
from .names import conv_tt_lstm_to_ours, official_name, recognised, to_ours, without_dead
from .reading import Source, read_weights, some

_ALPHA = "interfaces.0.cell.alpha"  # a tensor where it is learned
_OF_CONV_TT_LSTM = re.compile(r"((?:[^.]+\.)*?)layers_?\.\d+\.")


class Found(NamedTuple):
    """The model of a checkpoint, and what is to be told of it."""

    model: MotionRNN
    assumed: dict[str, Any]  # arguments that no tensor shows and the caller did not give
    left_out: list[str]  # a sentence for each kind of tensors
    is_own: bool  # whether the checkpoint is of this package, not of a public program
    pruned: str = ""  # which weights' pruning masks were applied


def load_checkpoint(
    source: Source,
    *,
    in_channels: int | None = None,
    patch_size: int | None = None,
    map_location: str | torch.device = "cpu",
    **overrides: Any,
) -> MotionRNN:
    """A MotionRNN, or bare predictor, with the weights of a checkpoint: of this package or of a public program.

    Args:
        source: a file written by torch.save (read with weights_only=True) or by safetensors, or a dict: the state dict
            itself, or one that holds it, as "net_param", "state_dict", "model" or whatever else. What wrappers put
            before the names ("module.", "_orig_mod.", "network.") is dropped.
        in_channels, patch_size: of the frames. A public checkpoint holds P*P*C alone: frames are taken for grey (C = 1)
            or RGB (C = 3), with a warning, where neither is given.
        map_location: where a file's tensors go.
        overrides: arguments of `MotionRNN` that no tensor shows, such as init_state="xavier" to start as the
            official program does (zeros otherwise) or trend=False; of `cell_options` those that are given change, the
            others stay. OpenSTL's E3D-LSTM gets compat="openstl": its weights were trained so, and predict nothing in
            the paper's form.

    A state dict of this package says what model it is of, and so does a checkpoint of `motionrnn train`: the model is
    made with the same arguments. Of public programs, and where the tensors were copied into another dict or file,
    predictor, widths, kernel sizes, layer norm and image size are read off names and shapes; what is assumed beyond is
    told in one warning with its value. Tensors keep their dtype. Parameters that predicting never reads (conv_o and
    conv_last in OpenSTL's ConvLSTM cells, conv_last in its MIM-N, the adapter of PredRNN-V2's loss) are left out, with
    a warning that names them. Pruning masks are applied, with a warning.

    Raises:
        OSError: no such file. TypeError: no file and no dict. ValueError: a truncated file, or one that holds more than
            tensors, of which no code is run; weights of parametrised or normed modules; a program that is not known
            here; a missing, unexpected or misshapen tensor, by name. ModuleNotFoundError: a safetensors file, without
            that package.
    """
    found = find_model(
        source, in_channels=in_channels, patch_size=patch_size, map_location=map_location, **overrides
    )
    for sentence in found.left_out:
        warnings.warn(f"load_checkpoint: left out {sentence}", stacklevel=2)
    if found.pruned:
        warnings.warn(f"load_checkpoint: applied the pruning masks of {found.pruned}", stacklevel=2)
    if found.assumed:
        warnings.warn(
            f"load_checkpoint: assumed {in_words(found.assumed)}, which no tensor shows; name what differs",
            stacklevel=2,
        )
    return found.model


def in_words(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def find_model(
    source: Source,
    *,
    in_channels: int | None = None,
    patch_size: int | None = None,
    map_location: str | torch.device = "cpu",
    **overrides: Any,
) -> Found:
    """`load_checkpoint` with what it assumes and leaves out, which it does not tell."""
    for name in overrides.keys() & {"device", "dtype"}:
        raise TypeError(f"unknown option {name!r}; known: map_location, and .to() of the model afterwards")
    weights = read_weights(source, map_location)
    given: dict[str, Any] = {"in_channels": in_channels, "patch_size": patch_size}
    given = {name: whole(name, value) for name, value in given.items() if value is not None} | overrides
    is_own = any(re.match(r"cells\.\d+\.", name) for name in weights.tensors)
    predictor = "" if is_own else recognised(weights.tensors, weights.where)
    left_out, shown = weights.left_out, partial(official_name, predictor=predictor)
    if is_own:
        state = weights.tensors
        read = _as_described(state, weights.arguments, given) if weights.arguments else read_own(state, given)
    else:
        live, dead = without_dead(weights.tensors, predictor)
        if dead:
            left_out = [*left_out, f"{len(dead)} tensors that prediction never reads: {some(dead)}"]
        state = to_ours(live, predictor)
        read = _of_program(state, predictor, given, shown)
    if is_own and _ALPHA in state and "alpha" not in given:
        given["alpha"] = nn.Parameter(torch.full_like(state[_ALPHA], 0.5))
    model = _made(read, given, weights.where)
    if problems := misfits(model, state, str if is_own else shown):
        raise ValueError(f"checkpoint does not fit: {'; '.join(problems[:4])}")
    assumed = {name: value for name, value in read.assumed.items() if name not in given}
    model.load_state_dict(state, assign=True)
    if isinstance(alpha := model.arguments["alpha"], Tensor):
        _share_alpha(model, alpha)
    pruned = weights.pruned
    masks = f"{len(pruned)} weights, which training may fill again: {some(pruned)}" if pruned else ""
    return Found(model, assumed, left_out, is_own, masks)


def load_conv_tt_lstm_cell(source: Source, *, map_location: str | torch.device = "cpu") -> ConvTTLSTMCell:
    """The cell of NVlabs' Conv-TT-LSTM, of `code` or `code_opt`, with bias.

    Args:
        source: as in `load_checkpoint`, with the cell's own names: "layers.#.*", "layers_.#.*". Channels, kernel
            size, order, steps and rank are read off the tensors.

    Raises:
        OSError, ValueError: as `load_checkpoint`.
    """
    tensors = read_weights(source, map_location, _OF_CONV_TT_LSTM).tensors
    order = sum(re.fullmatch(r"layers_\.\d+\.weight", name) is not None for name in tensors)
    names = [f"{part}.{level}" for part in ("layers_", "layers") for level in range(max(order, 1))]
    wanted = [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in wanted]
    if problems:
        raise ValueError(f"no cell of Conv-TT-LSTM: {some(problems)}")
    factor, gates = tensors["layers_.0.weight"], tensors[f"layers.{order - 1}.weight"]
    hidden = gates.shape[0] // 4 if gates.dim() == 4 else 0
    lags = (
        factor.shape[4]
        if factor.dim() == 5
        else factor.shape[1] // max(hidden, 1)
        if factor.dim() == 4
        else 0
    )
    if hidden < 1 or lags < 1 or gates.shape[1] <= factor.shape[0]:
        shapes = f"layers_.0.weight has shape {tuple(factor.shape)}, {names[-1]}.weight {tuple(gates.shape)}"
        raise ValueError(
            f"{shapes}; they should be (R, C, k, k, lags) or (R, lags*C, k, k), and (4C, C_in + R, k, k)"
        )
    rank, kernel = factor.shape[0], gates.shape[2]
    with torch.device("meta"):
        options: dict[str, Any] = {"order": order, "steps": order - 1 + lags, "rank": rank}
        cell = ConvTTLSTMCell(gates.shape[1] - rank, hidden, kernel, **options)
    state = conv_tt_lstm_to_ours(tensors)

    def official(name: str) -> str:
        part, *rest = name.split(".")
        here = {"factors": "layers_", "cores": "layers"}.get(part)
        return f"layers.{order - 1}.{rest[0]}" if here is None else ".".join([here, *rest])

    if problems := misfits(cell, state, official):
        raise ValueError(f"checkpoint does not fit: {'; '.join(problems[:4])}")
    cell.load_state_dict(state, assign=True)
    return cell


def _share_alpha(model: MotionRNN, alpha: Tensor) -> None:
    """Make the learned alpha one again, that of the model's arguments; assigned tensors are one for each MotionGRU."""
    cells = [cast(MotionGRU, interface).cell for interface in model.interfaces]
    values = [cast(Tensor, cell.alpha) for cell in cells]
    if values and all(torch.equal(value, values[0]) for value in values):
        alpha.data = values[0].data
        for cell in cells:
            cell.alpha = alpha


def _as_described(
    state: Mapping[str, Tensor], arguments: Mapping[str, Any], given: Mapping[str, Any]
) -> Read:
    """The arguments that the checkpoint says; a variant that the caller names replaces its options, too."""
    for name in ("in_channels", "patch_size"):
        if given.get(name, arguments.get(name)) != arguments.get(name, given.get(name)):
            raise ValueError(
                f"{name} is {given[name]}; it should be {arguments[name]}, as the checkpoint says"
            )
    if "variant" in given:
        arguments = {name: value for name, value in arguments.items() if name not in OPTIONS}
    if "in_channels" not in arguments and "conv_last.weight" in state:
        patch_size = given.get("patch_size", arguments.get("patch_size"))
        folded = state["conv_last.weight"].shape[0]
        in_channels, patch_size, _ = frame_layout(folded, given.get("in_channels"), patch_size)
        arguments = {**arguments, "in_channels": in_channels, "patch_size": patch_size}
    return Read(dict(arguments), {})


def _of_program(
    state: Mapping[str, Tensor], predictor: str, given: Mapping[str, Any], shown: Callable[[str], str]
) -> Read:
    """What a public program's names and shapes tell, and what is the same in all that it writes."""
    read = architecture(state, predictor, given.get("in_channels"), given.get("patch_size"), shown)
    motion = any(name.startswith(("interfaces.", "conv_first.")) for name in state)
    arguments = {**read.arguments, "variant": "official", "motion_gru": motion, "highway": motion}
    assumed = dict(read.assumed)
    if predictor == "e3d_lstm":
        arguments["compat"] = "openstl"
    if predictor == "mim" and n_layers(state) > 1:
        assumed["compat"] = None
    return Read(arguments, assumed)


def _made(read: Read, given: Mapping[str, Any], where: str) -> MotionRNN:
    """The model without values. A ValueError says so where the checkpoint's own arguments make none."""
    arguments = {**read.arguments, **given}
    there, options = read.arguments.get("cell_options"), given.get("cell_options")
    if isinstance(there, Mapping) and isinstance(options, Mapping):
        is_same = arguments.get("predictor") == read.arguments.get("predictor")
        arguments["cell_options"] = {**there, **options} if is_same else options
    try:
        with torch.device("meta"):
            return MotionRNN(**arguments)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        said = " ".join(str(error).split())
        if isinstance(error, ValueError) or any(name in said for name in given):
            raise
        raise ValueError(f"{where} describes a model that cannot be made: {said}") from None
