"""Load checkpoints of this package and of the public programs.

The programs are MotionRNN-PredRNN (thuml/MotionRNN), PredRNN and ConvLSTM (predrnn-pytorch, OpenSTL), MIM and E3D-LSTM
(OpenSTL), and the cell of Conv-TT-LSTM (NVlabs). Loading renames parameters and, if gates are packed in another order,
permutes channels; no number changes.
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
from .architecture import ReadArguments, architecture, frame_layout, misfits, n_layers, read_own
from .names import conv_tt_lstm_to_ours, official_name, recognised, to_ours, without_dead
from .reading import Source, read_weights, some

_ALPHA = "interfaces.0.cell.alpha"  # the name of a learned alpha
_OF_CONV_TT_LSTM = re.compile(r"((?:[^.]+\.)*?)layers_?\.\d+\.")


class Found(NamedTuple):
    """The model of a checkpoint, and facts about the loading that the user should know.

    Attributes:
        model: the model, with the weights of the checkpoint.
        assumed: arguments that no tensor shows and the caller did not give, with the values assumed.
        left_out: a phrase for every kind of tensors that were left out.
        is_own: whether this package wrote the checkpoint, not a public program.
        pruned: the weights whose pruning masks were applied, as a phrase, or "".
    """

    model: MotionRNN
    assumed: dict[str, Any]
    left_out: list[str]
    is_own: bool
    pruned: str = ""


def load_checkpoint(
    source: Source,
    *,
    in_channels: int | None = None,
    patch_size: int | None = None,
    map_location: str | torch.device = "cpu",
    **overrides: Any,
) -> MotionRNN:
    """Load a MotionRNN, or a predictor without motion, from a checkpoint of this package or of a public program.

    A state dict of this package describes its model, and so does a checkpoint of `motionrnn train`: the model is made
    with the same arguments. For public programs, and if the tensors were copied into another dict or file, predictor,
    widths, kernel sizes, layer norm and image size are read off names and shapes. One warning lists the arguments that
    no tensor shows, with the values assumed.

    Tensors of a file or dict keep their dtype. Parameters that predictions never read (conv_o and conv_last in
    OpenSTL's ConvLSTM cells, conv_last in its MIM-N, the adapter of PredRNN-V2's loss) are left out, with a warning
    that names them. Pruning masks are applied, with a warning.

    Args:
        source: a file written by torch.save (read with weights_only=True) or by safetensors; a folder that
            `MotionRNN.save_pretrained` wrote, whose half-precision tensors become float32; or a dict: the state dict
            itself, or a dict that holds it as "net_param", "state_dict", "model" or under any other name. Prefixes that
            wrappers put before the names ("module.", "_orig_mod.", "network.") are dropped.
        in_channels: C, the channels of a frame. A public checkpoint shows only P*P*C: if neither C nor P is given,
            frames are assumed to be grey (C = 1) or RGB (C = 3), with a warning.
        patch_size: P, the side of the patches that frames are folded by.
        map_location: the device for a file's tensors.
        **overrides: arguments of `MotionRNN` that no tensor shows, such as init_state="xavier" to start as the
            official program does (zeros otherwise) or trend=False. `cell_options` replaces only the options that it
            names. OpenSTL's E3D-LSTM gets compat="openstl", because its weights were trained so, and predict nothing
            useful in the paper's form.

    Returns:
        The model, in training mode, on the device of its tensors.

    Raises:
        OSError: the file does not exist or cannot be read.
        TypeError: source is neither a file nor a dict, or an argument is unknown.
        ValueError: the file is truncated, or holds more than tensors (no code of it runs); weights belong to
            parametrised or normed modules; the program is not known; or a tensor is missing, unexpected or has another
            shape (the message names it).
        ModuleNotFoundError: the file is a safetensors file, and that package is not installed.

    Examples:
        >>> model = load_checkpoint("predrnn.pt", in_channels=1, patch_size=4).eval()
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
            f"load_checkpoint: assumed {in_words(found.assumed)}, which no tensor shows; pass those that differ",
            stacklevel=2,
        )
    return found.model


def in_words(arguments: Mapping[str, Any]) -> str:
    """Return arguments as a message shows them."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def find_model(
    source: Source,
    *,
    in_channels: int | None = None,
    patch_size: int | None = None,
    map_location: str | torch.device = "cpu",
    **overrides: Any,
) -> Found:
    """Load a checkpoint, as `load_checkpoint` does, but return what it assumes and leaves out instead of warning."""
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
        read = (
            _described_arguments(state, weights.arguments, given)
            if weights.arguments
            else read_own(state, given)
        )
    else:
        live, dead = without_dead(weights.tensors, predictor)
        if dead:
            left_out = [*left_out, f"{len(dead)} tensors that prediction never reads: {some(dead)}"]
        state = to_ours(live, predictor)
        read = _program_arguments(state, predictor, given, shown)
    if is_own and _ALPHA in state and "alpha" not in given:
        given["alpha"] = nn.Parameter(torch.full_like(state[_ALPHA], 0.5))
    model = _make_model(read, given, weights.where)
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
    """Load the cell of NVlabs' Conv-TT-LSTM, of `code` or `code_opt`, with bias.

    Channels, kernel size, order, steps and rank are read off the tensors.

    Args:
        source: a file or a dict, as in `load_checkpoint`, with the cell's own names: "layers.#.*", "layers_.#.*".
        map_location: the device for a file's tensors.

    Returns:
        The cell, with the weights of the checkpoint.

    Raises:
        OSError: the file does not exist or cannot be read.
        TypeError: source is neither a file nor a dict.
        ValueError: the file is truncated or holds more than tensors, or a tensor is missing, unexpected or has another
            shape (the message names it).
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
    """Make all MotionGRUs share the learned alpha of the model's arguments again.

    Assigning the tensors of a state dict has given each MotionGRU an alpha of its own.
    """
    cells = [cast(MotionGRU, interface).cell for interface in model.interfaces]
    values = [cast(Tensor, cell.alpha) for cell in cells]
    if values and all(torch.equal(value, values[0]) for value in values):
        alpha.data = values[0].data
        for cell in cells:
            cell.alpha = alpha


def _described_arguments(
    state: Mapping[str, Tensor], arguments: Mapping[str, Any], given: Mapping[str, Any]
) -> ReadArguments:
    """Return the arguments that the checkpoint describes; a variant given by the caller replaces the options, too.

    Raises:
        ValueError: the caller's in_channels or patch_size is another, or a file that was tampered with asks for
            parameters that fill the memory before they are compared with its tensors.
    """
    for name in ("in_channels", "patch_size"):
        if name in given and name in arguments and given[name] != arguments[name]:
            raise ValueError(
                f"{name} is {given[name]}; it should be {arguments[name]}, as the checkpoint says"
            )
    options = arguments.get("cell_options")
    order = options.get("order") if isinstance(options, Mapping) else None
    if isinstance(order, int) and order > len(state):
        raise ValueError(f"checkpoint does not fit: its order is {order}, and it has {len(state)} tensors")
    if elsewhere := [name for name in ("device", "dtype") if name in arguments]:
        raise ValueError(
            f"checkpoint does not fit: its description has {elsewhere[0]}, which is no argument of it"
        )
    if "variant" in given:
        arguments = {name: value for name, value in arguments.items() if name not in OPTIONS}
    if "in_channels" not in arguments and "conv_last.weight" in state:
        patch_size = given.get("patch_size", arguments.get("patch_size"))
        folded = state["conv_last.weight"].shape[0]
        in_channels, patch_size, _ = frame_layout(folded, given.get("in_channels"), patch_size)
        arguments = {**arguments, "in_channels": in_channels, "patch_size": patch_size}
    return ReadArguments(dict(arguments), {})


def _program_arguments(
    state: Mapping[str, Tensor], predictor: str, given: Mapping[str, Any], shown: Callable[[str], str]
) -> ReadArguments:
    """Return the arguments that a public program's names and shapes show, and those that are always the same."""
    read = architecture(state, predictor, given.get("in_channels"), given.get("patch_size"), shown)
    motion = any(name.startswith(("interfaces.", "conv_first.")) for name in state)
    arguments = {**read.arguments, "variant": "official", "motion_gru": motion, "highway": motion}
    assumed = dict(read.assumed)
    if predictor == "e3d_lstm":
        arguments["compat"] = "openstl"
    if predictor == "mim" and n_layers(state) > 1:
        assumed["compat"] = None
    return ReadArguments(arguments, assumed)


def _make_model(read: ReadArguments, given: Mapping[str, Any], where: str) -> MotionRNN:
    """Return the model without values, on the device "meta".

    Raises:
        ValueError: the checkpoint's own arguments make no model.
    """
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
