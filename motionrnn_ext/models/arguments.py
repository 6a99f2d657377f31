"""Checks of the arguments of `MotionRNN`."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.arguments import check_tensor, is_whole, shown
from ..layers.cells import cell_options
from ..layers.plain import check_entries, has_entries, number_or_type


def widths(given: Any, predictor: str, has_memory: bool, highway: bool) -> tuple[int, ...]:
    """Return the width of every layer as ints, from a list, an array or another iterable with an order.

    Raises:
        TypeError: the widths have no order, or one is no integer.
        ValueError: there are none, one is below 1, or they differ although all should be equal.
    """
    ordered = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Set, Mapping))
    # An array without axes counts as an Iterable, but cannot be iterated.
    hidden = tuple(given) if ordered and getattr(given, "ndim", None) != 0 else (None,)
    if isinstance(given, Iterator):
        given = hidden  # a message can show the tuple
    whole = all(map(is_whole, hidden))
    if not whole or not hidden or min(hidden) < 1:
        raise (ValueError if whole else TypeError)(
            f"hidden_channels is {shown(given)}; it should be the width of every layer, such as (64, 64), whole "
            "numbers of at least 1"
        )
    hidden = tuple(map(operator.index, hidden))
    if len(set(hidden)) > 1 and (highway or has_memory):
        why = "a highway" if highway else f"the memory of {predictor!r}"
        raise ValueError(f"hidden_channels is {hidden}; with {why} all layers should be equal")
    return hidden


def checked_cell_options(predictor: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of the predictor's own cell; raise a TypeError if it does not take one of them."""
    if not isinstance(options, Mapping):
        raise TypeError(f"cell_options is {shown(options)}; it should be a dict of names and values")
    known = cell_options(predictor)
    for name in options:
        if name not in known:
            has = f"; known: {', '.join(known)}" if known else ", which has none of its own"
            raise TypeError(f"unknown option {name!r} of predictor {predictor!r}{has}")
    return options


def per_position_size(image_size: tuple[int, int] | None, patch_size: int, who: str) -> tuple[int, int]:
    """Return the image size (H, W) that parameters per position need; `who` names in messages what has them.

    Raises:
        ValueError: it is None, or patch_size does not divide it.
    """
    if image_size is None:
        raise ValueError(f"image_size is None; {who} needs (H, W), as its parameters are per position")
    height, width = image_size
    if height % patch_size or width % patch_size:
        raise ValueError(f"image_size is {height}x{width}; it should be divisible by patch_size {patch_size}")
    return height, width


def check_count(name: str, value: Any) -> None:
    """Raise a TypeError unless `value`, a number of frames, is a whole number."""
    if not is_whole(value):
        raise TypeError(f"{name} is {shown(value)}; it should be a whole number of frames")


def check_generator(generator: torch.Generator | None, device: torch.device | None) -> None:
    """Raise an error unless `generator` is None, or a generator on the device of the tensors that are drawn."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator is {shown(generator)}; it should be a torch.Generator, such as "
            "torch.Generator().manual_seed(0)"
        )
    if device is not None and device.type not in (generator.device.type, "meta"):
        raise ValueError(
            f"generator is on {generator.device}; it should be on {device}, the device of the weights"
        )


def check_frames(
    frames: Tensor,
    rank: int,
    in_channels: int,
    image_size: tuple[int, int] | None,
    patch_size: int,
    halves_map: bool,
) -> None:
    """Raise an error unless `frames` are floating-point frames that a model can read.

    Args:
        frames: (B, C, H, W) for a rank of 4, (B, T, C, H, W) for a rank of 5.
        rank: the number of axes.
        in_channels: C.
        image_size: (H, W), if the model has parameters per position.
        patch_size: P, which should divide H and W.
        halves_map: whether the model has MotionGRUs, so that 2*P should divide them.
    """
    check_tensor("frames", frames)
    if frames.dim() != rank or frames.shape[-3] != in_channels:
        wanted = f"({'B, T' if rank == 5 else 'B'}, {in_channels}, H, W)"
        raise ValueError(f"frames has shape {tuple(frames.shape)}; it should be {wanted}")
    if not frames.is_floating_point():
        raise TypeError(f"frames has dtype {frames.dtype}; it should be floating point, in [0, 1]")
    height, width = frames.shape[-2:]
    if image_size is not None and (height, width) != image_size:
        made = "{}x{}".format(*image_size)
        why = "parameters per position were"
        raise ValueError(f"frames are {height}x{width}; {why} made for image_size {made} only")
    divisor, rule = patch_size, "patch_size"
    if halves_map:
        divisor, rule = 2 * divisor, "2*patch_size, as MotionGRU halves the map"
    if height % divisor or width % divisor:
        raise ValueError(f"frames are {height}x{width}; both should be divisible by {divisor} ({rule})")


def check_parts(cells: nn.ModuleList, interfaces: nn.ModuleList) -> None:
    """Raise a TypeError if a cell or MotionGRU of a model was replaced by something that cannot be called as one."""
    for level, cell in enumerate(cells):
        if not hasattr(cell, "initial_state"):
            raise TypeError(f"cells[{level}] is a {type(cell).__name__}; it should be a RecurrentCell")
    for level, gru in enumerate(interfaces):
        if gru is None:
            raise TypeError(
                f"interfaces[{level}] is None; it should be a MotionGRU, or a module that is called as one"
            )


def check_moved(level: int, moved: Any) -> None:
    """Raise a TypeError unless `moved`, returned by interfaces[level], is x and the motion after the step."""
    check_entries(f"interfaces[{level}]", moved, "x", "state")
    if not has_entries(moved[1], 2):
        raise TypeError(
            f"the state that interfaces[{level}] returns is {number_or_type(moved[1])}; it should be a MotionState, "
            "or a pair (offset, trend)"
        )


def check_state(state: Any, n_layers: int, n_motions: int, map_shape: tuple[int, ...]) -> None:
    """Raise an error unless a `MotionRNNState` has so many layers and motions, and H of the first layer that shape."""
    for level, layer in enumerate(state.layers):
        if not isinstance(getattr(layer, "hidden", None), Tensor):
            raise TypeError(
                f"state.layers[{level}] is a {type(layer).__name__}; it should have a tensor `hidden`, as those of "
                "initial_state and step"
            )
    hidden_shape = tuple(state.layers[0].hidden.shape) if state.layers else ()
    found, wanted = (len(state.layers), len(state.motion), hidden_shape), (n_layers, n_motions, map_shape)
    if found != wanted:
        raise ValueError(f"state has (layers, motions, shape of H^1) {found}; it should have {wanted}")


def a_weight(*modules: nn.Module) -> Tensor:
    """Return a floating-point tensor that the modules hold, a parameter if there is one, without computing any.

    The replicas of `nn.DataParallel` hold their weights as attributes.
    """
    held = itertools.chain(
        *(module.parameters() for module in modules),
        *(module.buffers() for module in modules),
        (value for module in modules for part in module.modules() for value in vars(part).values()),
    )
    return next((t for t in held if isinstance(t, Tensor) and t.is_floating_point()), torch.empty(0))
