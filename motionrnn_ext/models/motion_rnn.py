"""MotionRNN: a stack of recurrent cells, a MotionGRU between each two layers, a Motion Highway past them.

One time step, with input u (a true or a generated frame, patches folded into channels) and the highway Y:

    Y = W_first * u  (with highway_first, else nothing)
    for layer l = 1..L:
        H^l, state^l, M = cell_l(X^{l-1}, state^l, M, Y)     X^0 = u; inside the cell H^l += (1 - s(o)).Y
        Y = H^l
        X^l = MotionGRU_l(H^l) for l < L,  X^L = H^L         with carry="motion", X^l replaces H in state^l
    next frame = W_last * X^L

The paper and the released program differ in 29 points; `models/variants.py` says where each is settled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.types import Device
from torch.utils.checkpoint import checkpoint as recomputing

from .. import backends
from ..backends.layouts import memory_format
from ..layers.arguments import check_tensor, flag, odd, pair, whole
from ..layers.cells import RecurrentCell, cell_class, make_cell
from ..layers.initial_values import Resettable
from ..layers.motion import MotionState
from ..layers.motion_gru import MotionGRU
from ..layers.motion_gru_cell import PackedGates
from ..layers.plain import is_plain
from ..layers.states import check_not_rounded, detached, exportable, taken_up
from ..layers.tensors import fold_depth, unfold_depth
from .arguments import (
    check_count,
    check_generator,
    check_size,
    checked_cell_options,
    per_position_size,
    widths,
)
from .checkpoints.description import arguments_of, describe
from .off_map import warn_of_lost_motion
from .patches import fold_mask, fold_patches, unfold_patches
from .variants import variant_options


@exportable
class MotionRNNState(NamedTuple):
    """All that a MotionRNN carries from one frame to the next; entries may be one and the same tensor."""

    layers: tuple[Any, ...]  # L times the cell's state, such as LSTMState, with H in the field `hidden`
    motion: tuple[MotionState, ...]  # L-1 times offset and trend, (B, 2K, h/2, w/2); empty without MotionGRU
    memory: Any  # of predictors whose memory travels through the stack, else None

    def detach(self) -> MotionRNNState:
        """Return the state cut from the graph, for truncated backpropagation."""
        return detached(self)


class MotionRNN(Resettable):
    """MotionRNN on a predictor's cells; with `motion_gru` and `highway` off, exactly that predictor.

    Args:
        predictor: the recurrent cell by name: "convlstm", "predrnn", "mim", "e3d_lstm", "conv_tt_lstm", or one
            of your own (`register_predictor`).
        in_channels: channels C of a frame.
        hidden_channels: width of every layer, first to last; equal with a highway or a travelling memory.
        patch_size: P; frames are folded to maps of h = H/P, w = W/P with P*P*C channels.
        variant: "paper" or "official", see the table above; `overrides` replaces single `Options` of it.
        filter_size: kernel of the cells' convolutions.
        layer_norm, image_size: layer norm with an affine per position, for images of image_size (H, W) only;
            "mim" and "e3d_lstm" have parameters per position, and need image_size, with or without it.
        motion_gru, highway: False leaves out the MotionGRUs, the Motion Highway.
        transient, trend: ablations of the motion, see `MotionGRUCell`.
        compat: "openstl" for cells that compute what OpenSTL's do where those deviate from their papers, see
            `MIMCell` and `E3DLSTMCell`; "mim" then keeps a state between calls until `reset()`.
        cell_options: arguments that only this predictor's cell has, such as order, steps and rank of
            "conv_tt_lstm".
        device, dtype: of the parameters, as in `nn.Conv2d`.

    On the CPU a RuntimeWarning says, once, that most taps of a MotionGRU lie outside of the map, or that its motion is
    nan, after a rollout or after every 16th call of `step`.
    """

    optional = ("conv_first",)
    _has_warned = False
    _steps = 0  # calls of `step`

    def __init__(
        self,
        predictor: str,
        in_channels: int,
        hidden_channels: Sequence[int],
        patch_size: int,
        variant: str = "paper",
        *,
        filter_size: int = 5,
        layer_norm: bool = False,
        image_size: tuple[int, int] | None = None,
        motion_gru: bool = True,
        highway: bool = True,
        transient: bool = True,
        trend: bool = True,
        compat: str | None = None,
        cell_options: Mapping[str, Any] | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **overrides: object,
    ) -> None:
        super().__init__()
        cell_type = cell_class(predictor)
        highway, motion_gru = flag("highway", highway), flag("motion_gru", motion_gru)
        hidden = widths(hidden_channels, predictor, cell_type.has_memory, highway)
        in_channels, patch_size = whole("in_channels", in_channels), whole("patch_size", patch_size)
        filter_size, layer_norm = odd("filter_size", filter_size), flag("layer_norm", layer_norm)
        image_size = None if image_size is None else pair("image_size", image_size, "(H, W)")
        transient, trend = flag("transient", transient), flag("trend", trend)
        own_options = checked_cell_options(predictor, {} if cell_options is None else cell_options)
        self.options = options = variant_options(variant, filter_size, **overrides)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.predictor, self.in_channels, self.hidden_channels = predictor, in_channels, hidden
        self.patch_size, self.highway, self.trend = patch_size, highway, trend
        classes = [cell_type.of_layer(level) for level in range(len(hidden))]
        needs_map_size = any(cls.needs_map_size for cls in classes)
        per_position = "layer_norm" if layer_norm else repr(predictor) if needs_map_size else None
        self.image_size = per_position_size(image_size, patch_size, per_position) if per_position else None
        map_size = self.image_size and (self.image_size[0] // patch_size, self.image_size[1] // patch_size)

        folded = in_channels * patch_size**2
        self.cells = nn.ModuleList(
            make_cell(
                cls,
                below,
                width,
                filter_size,
                layer_norm=layer_norm,
                map_size=map_size,
                compat=compat,
                **own_options,
                **made,
            )
            for cls, below, width in zip(classes, (folded, *hidden), hidden)
        )
        self.interfaces = nn.ModuleList(
            MotionGRU(
                width,
                options.kernel_size,
                options.alpha,
                max_offset=options.max_offset,
                encoder_kernel_size=options.encoder_kernel_size,
                gate_kernel_size=options.gate_kernel_size,
                mask_kernel_size=options.mask_kernel_size,
                blend_kernel_size=options.blend_kernel_size,
                gate_side=options.gate_side,
                transient=transient,
                trend=trend,
                zero_init=options.zero_init,
                depth=self._cells()[0].depth > 1,
                **made,
            )
            for width in (hidden[:-1] if motion_gru else ())
        )
        project = highway and options.highway_first
        self.conv_first = nn.Conv2d(folded, hidden[0], 1, bias=False, **made) if project else None
        top_channels = hidden[-1] * self._cells()[-1].depth
        self.conv_last = nn.Conv2d(top_channels, folded, 1, bias=False, **made)
        # What MotionRNN(**arguments) makes this model of again; a state dict holds it, see `description.py`.
        self.arguments: dict[str, Any] = {
            "predictor": predictor,
            "in_channels": in_channels,
            "hidden_channels": hidden,
            "patch_size": patch_size,
            "variant": variant,
            "filter_size": filter_size,
            "layer_norm": layer_norm,
            "image_size": self.image_size,
            "motion_gru": motion_gru,
            "highway": highway,
            "transient": transient,
            "trend": trend,
            "compat": compat,
            "cell_options": dict(own_options),
            **{entry.name: getattr(options, entry.name) for entry in fields(options)},
        }
        self.register_state_dict_post_hook(describe)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "arguments" not in state:  # pickled by an older version, which had no bound of the motion
            self.options = replace(self.options, max_offset=None)
            for gru in self._motion_grus():
                gru.depth = self._cells()[0].depth > 1
            self.arguments = arguments_of(self)
            self.register_state_dict_post_hook(describe)

    def extra_repr(self) -> str:
        values = {entry.name: getattr(self.options, entry.name) for entry in fields(self.options)}
        shown = {name: "learned" if isinstance(v, Tensor) else repr(v) for name, v in values.items()}
        options = ", ".join(f"{name}={text}" for name, text in shown.items())
        return f"{self.predictor!r}, patch_size={self.patch_size}, highway={self.highway}, {options}"

    def forward(
        self,
        frames: Tensor,
        n_input: int,
        sampling_mask: Tensor | None = None,
        state: MotionRNNState | None = None,
        reverse_sampling: bool = False,
        return_motion: bool = False,
        generator: torch.Generator | None = None,
        checkpoint: bool = False,
    ) -> Tensor | tuple[Tensor, list[MotionState]]:
        """Next-frame predictions all along a sequence.

        Args:
            frames: (B, T, C, H, W) in [0, 1]; H, W divisible by 2*patch_size (patch_size without MotionGRU).
            n_input: number of given frames, 1..T; at later steps the model reads its own prediction.
            sampling_mask: scheduled sampling at those steps n_input..T-2: 1 reads the true frame, 0 the
                prediction, between mixes them. Broadcasts to (B, T-1-n_input, C, H, W). None is 0 throughout.
            state: initial tensors, instead of `initial_state`'s.
            reverse_sampling: the mask covers the steps 1..T-2, (B, T-2, C, H, W), given frames included.
            return_motion: return the motion after every step as well.
            generator: source of the draws of init_state="xavier".
            checkpoint: keep the state after each step alone, and compute the step again in backward: 7 to 10 times
                less memory in 1.3 to 1.4 times the time (4 layers of 64 channels, 64x64 pixels, T = 11, CPU).

        Returns:
            (B, T-1, C, H, W): predictions of frames 1..T-1, the first n_input-1 being reconstructions. With
            `return_motion` also a list of one `MotionState` per interface, offset and trend (B, T-1, 2K, h/2,
            w/2): K row offsets, then K column offsets, taps row by row, in pixels of the half-size map, which
            are 2*patch_size pixels of the image; (B, T-1, W, 2K, h/2, w/2) where maps have a depth of W.
        """
        self._check_frames(frames, rank=5)
        check_count("n_input", n_input)
        total = frames.shape[1]
        if total < 2 or not 1 <= n_input <= total:
            raise ValueError(f"n_input is {n_input} and T {total}; they should be 1 <= n_input <= T, 2 <= T")
        folded = fold_patches(frames, self.patch_size)  # (B, T, P*P*C, h, w)
        mask, start = None, n_input  # steps before `start` read the true frame
        if sampling_mask is not None:
            check_tensor("sampling_mask", sampling_mask)
            start = 1 if reverse_sampling else n_input
            mask = fold_mask(sampling_mask, frames[:, start : total - 1], self.patch_size)

        def read(t: int, prediction: Tensor | None) -> Tensor:
            if prediction is None or t < start:
                return folded[:, t]
            if mask is None:
                return prediction
            keep = mask[:, t - start]
            return keep * folded[:, t] + (1 - keep) * prediction

        state = self._start(frames, state, generator)
        predictions, motion = self._rollout(read, total - 1, state, checkpoint, all_motion=return_motion)
        out = unfold_patches(torch.stack(predictions, dim=1), self.patch_size)
        if not return_motion:
            return out
        return out, [
            MotionState(*(self._over_time(part) for part in zip(*interface))) for interface in zip(*motion)
        ]

    @torch.no_grad()
    def predict(
        self,
        frames: Tensor,
        n_future: int,
        state: MotionRNNState | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The n_future frames after frames (B, T, C, H, W): (B, n_future, C, H, W), without gradients."""
        self._check_frames(frames, rank=5)
        check_count("n_future", n_future)
        given = frames.shape[1]
        if given < 1 or n_future < 1:
            raise ValueError(f"frames has T = {given}, n_future is {n_future}; both should be at least 1")
        folded = fold_patches(frames, self.patch_size)

        def read(t: int, prediction: Tensor | None) -> Tensor:
            return folded[:, t] if prediction is None or t < given else prediction

        state = self._start(frames, state, generator)
        predictions, _ = self._rollout(read, given + n_future - 1, state, first=given - 1)
        return unfold_patches(torch.stack(predictions, dim=1), self.patch_size)

    def step(self, frame: Tensor, state: MotionRNNState | None = None) -> tuple[Tensor, MotionRNNState]:
        """One step of a stream: frame (B, C, H, W) and the state before it, None at the start; returns the
        predicted next frame (B, C, H, W) and the state after."""
        self._check_frames(frame, rank=4)
        state = self._start(frame, state, None)
        prediction, state = self._advance(fold_patches(frame, self.patch_size), state, self._pack())
        if not torch.compiler.is_compiling():
            self._steps += 1
            if self._steps % 16 == 0:
                self._warn_of_lost_motion(state, "after this step")
        return unfold_patches(prediction, self.patch_size), state

    def initial_state(
        self, batch_size: int, height: int, width: int, generator: torch.Generator | None = None
    ) -> MotionRNNState:
        """The state before the first of `batch_size` sequences of height x width images.

        By `options.init_state` zero, or Xavier-normal: std sqrt(2 / ((C + B) h w)) of (B, C, h, w), drawn in the
        official program's order with the draws it never uses, so that one seed gives its numbers. H and C of a layer
        are one tensor, F and D of an interface another (with trend=False D is 0).
        """
        for name, value in (("batch_size", batch_size), ("height", height), ("width", width)):
            check_size(name, value)
        # Of a module that computes its weight, reading that would be a call.
        parameters = itertools.chain(self.conv_last.parameters(), self.parameters())
        weight = next(p for p in parameters if p.is_floating_point())
        check_generator(generator, weight.device if self.options.init_state == "xavier" else None)
        motion_dtype = torch.promote_types(weight.dtype, torch.float32)
        h, w = height // self.patch_size, width // self.patch_size
        layout = self._memory_format()

        def draw(shape: tuple[int, ...], dtype: torch.dtype = weight.dtype) -> Tensor:
            tensor = torch.zeros(shape, dtype=dtype, device=weight.device)
            if self.options.init_state == "xavier":
                nn.init.xavier_normal_(tensor, generator=generator)
            return tensor.contiguous(memory_format=layout) if len(shape) == 4 else tensor

        cells, layers, motion, memory = self._cells(), [], [], None
        for cell in cells:
            layers.append(cell.initial_state(draw(cell.hidden_shape(batch_size, h, w))))
        slices = batch_size * cells[0].depth
        for width in self.hidden_channels[: len(self.interfaces)]:
            draw((slices, width // 4, h // 2, w // 2))  # never used
            offset = draw((slices, 2 * self.options.kernel_size**2, h // 2, w // 2), motion_dtype)
            motion.append(MotionState(offset, offset if self.trend else torch.zeros_like(offset)))
        if cells[0].has_memory:
            memory = cells[0].initial_memory(draw(cells[0].hidden_shape(batch_size, h, w)))
        draw(cells[0].hidden_shape(batch_size, h, w))  # the highway's, never used
        return MotionRNNState(tuple(layers), tuple(motion), memory)

    def reset(self) -> None:
        """Forget what cells with compat="openstl" keep between sequences."""
        for cell in self._cells():
            cell.reset()

    def _rollout(
        self,
        read: Callable[[int, Tensor | None], Tensor],
        steps: int,
        state: MotionRNNState,
        recompute: bool = False,
        *,
        first: int = 0,
        all_motion: bool = False,
    ) -> tuple[list[Tensor], list[tuple[MotionState, ...]]]:
        """The folded predictions of `steps` steps from number `first` on, (B, P*P*C, h, w), and with `all_motion` the
        motion after each step; `read(t, last prediction)` is the input of step t."""
        advance = self._recomputed if recompute and torch.is_grad_enabled() else self._advance
        predictions: list[Tensor] = []
        motion: list[tuple[MotionState, ...]] = []
        packed, prediction = self._pack(), None
        for t in range(steps):
            prediction, state = advance(read(t, prediction), state, packed)
            if t >= first:
                predictions.append(prediction)
            if all_motion:
                motion.append(state.motion)
        self._warn_of_lost_motion(state, f"after step {steps}")
        return predictions, motion

    def _warn_of_lost_motion(self, state: MotionRNNState, when: str) -> None:
        if not self._has_warned and warn_of_lost_motion(state.motion, when):
            self._has_warned = True

    def _advance(
        self, x: Tensor, state: MotionRNNState, packed: Sequence[PackedGates | None]
    ) -> tuple[Tensor, MotionRNNState]:
        """One time step: x (B, P*P*C, h, w) -> the prediction, of x's shape, and the state after it."""
        layers, motion, memory = [], [], state.memory
        x = self._cells()[0].embed(x, state.layers[0])  # (B, P*P*C, h, w), or with a depth axis
        highway = None if self.conv_first is None else unfold_depth(self.conv_first(fold_depth(x)), x)
        for level, cell in enumerate(self.cells):
            x, layer, memory = cell(x, state.layers[level], memory, highway)
            if self.highway:
                highway = x  # the block's output, before the MotionGRU
            if level < len(self.interfaces):
                ahead = () if packed[level] is None else (packed[level],)
                x, moved = self.interfaces[level](x, state.motion[level], *ahead)
                motion.append(moved)
                if self.options.carry == "motion":
                    layer = layer._replace(hidden=x)
            layers.append(layer)
        return self.conv_last(x.flatten(1, -3)), MotionRNNState(tuple(layers), tuple(motion), memory)

    def _recomputed(self, *inputs: Any) -> tuple[Tensor, MotionRNNState]:
        """`_advance`, of which only the inputs are kept for backward."""
        if any(cell.keeps_state and cell.compat for cell in self._cells()):
            raise ValueError(
                f"checkpoint is True; it should be False for {self.predictor!r} with compat='openstl', whose cells "
                "keep a state from call to call: a step computed again would be another"
            )
        if torch.compiler.is_compiling():  # the choice of a backend is part of the graph
            return recomputing(self._advance, *inputs, use_reentrant=False)
        name = backends.current_backend()

        def advance(*inputs: Any) -> tuple[Tensor, MotionRNNState]:
            # Backward may be another thread's, or outside of the block that chose the backend.
            with backends.backend(name):
                return self._advance(*inputs)

        return recomputing(advance, *inputs, use_reentrant=False)

    def _over_time(self, steps: tuple[Tensor, ...]) -> Tensor:
        """T-1 times (B, ...) or (B*W, ...) -> (B, T-1, ...) or (B, T-1, W, ...)."""
        stacked, depth = torch.stack(steps, dim=1), self._cells()[0].depth
        return stacked if depth == 1 else stacked.unflatten(0, (-1, depth)).movedim(1, 2)

    def _cells(self) -> list[RecurrentCell]:
        return cast("list[RecurrentCell]", list(self.cells))

    def _motion_grus(self) -> list[MotionGRU]:
        return cast("list[MotionGRU]", list(self.interfaces))

    def _memory_format(self) -> torch.memory_format:
        """channels_last where the weights are; most of 1x1 are both."""
        formats = (memory_format(weight) for weight in self.parameters() if weight.dim() == 4)
        return torch.channels_last if torch.channels_last in formats else torch.contiguous_format

    def _pack(self) -> Sequence[PackedGates | None]:
        # None where hooks (FSDP's, which gather the weights, or a user's) or a user's module stand before the gates:
        # its weights are known within its own forward alone.
        return [gru.pack_ahead() if is_plain(gru, MotionGRU) else None for gru in self._motion_grus()]

    def _start(
        self, frames: Tensor, state: MotionRNNState | None, generator: torch.Generator | None
    ) -> MotionRNNState:
        batch_size, (height, width) = frames.shape[0], frames.shape[-2:]
        for level, cell in enumerate(self.cells):
            if not hasattr(cell, "initial_state"):
                raise TypeError(f"cells[{level}] is a {type(cell).__name__}; it should be a RecurrentCell")
        for level, gru in enumerate(self.interfaces):
            if gru is None:
                raise TypeError(
                    f"interfaces[{level}] is None; it should be a MotionGRU, or a module that is called as one"
                )
        if state is None:
            state = self.initial_state(batch_size, height, width, generator)
            made = state.layers[0].hidden.dtype
            if {made, frames.dtype} == {torch.float32, torch.float64}:
                raise TypeError(
                    f"frames has dtype {frames.dtype}; it should be {made}, the dtype of the parameters"
                )
            return state
        if not isinstance(state, MotionRNNState):
            given = type(state).__name__
            raise TypeError(
                f"state is a {given}; it should be a MotionRNNState, as initial_state and step return"
            )
        for level, layer in enumerate(state.layers):
            if not isinstance(getattr(layer, "hidden", None), Tensor):
                raise TypeError(
                    f"state.layers[{level}] is a {type(layer).__name__}; it should have a tensor `hidden`, as those of "
                    "initial_state and step"
                )
        hidden_shape = tuple(state.layers[0].hidden.shape) if state.layers else ()
        found = len(state.layers), len(state.motion), hidden_shape
        map_size = height // self.patch_size, width // self.patch_size
        map_shape = self._cells()[0].hidden_shape(batch_size, *map_size)
        wanted = len(self.cells), len(self.interfaces), map_shape
        if found != wanted:
            raise ValueError(f"state has (layers, motions, shape of H^1) {found}; it should have {wanted}")
        if self._cells()[0].has_memory and state.memory is None:
            raise ValueError(
                f"state has no memory; {self.predictor!r} has one, as initial_state and step return"
            )
        for motion in state.motion:
            check_not_rounded(self, "motion", motion.offset)
        return state if torch.is_autocast_enabled(frames.device.type) else taken_up(state, frames.dtype)

    def _check_frames(self, frames: Tensor, rank: int) -> None:
        check_tensor("frames", frames)
        if frames.dim() != rank or frames.shape[-3] != self.in_channels:
            wanted = f"({'B, T' if rank == 5 else 'B'}, {self.in_channels}, H, W)"
            raise ValueError(f"frames has shape {tuple(frames.shape)}; it should be {wanted}")
        if not frames.is_floating_point():
            raise TypeError(f"frames has dtype {frames.dtype}; it should be floating point, in [0, 1]")
        height, width = frames.shape[-2:]
        if self.image_size is not None and (height, width) != self.image_size:
            made = "{}x{}".format(*self.image_size)
            why = "parameters per position were"
            raise ValueError(f"frames are {height}x{width}; {why} made for image_size {made} only")
        divisor, rule = self.patch_size, "patch_size"
        if self.interfaces:
            divisor, rule = 2 * divisor, "2*patch_size, as MotionGRU halves the map"
        if height % divisor or width % divisor:
            raise ValueError(f"frames are {height}x{width}; both should be divisible by {divisor} ({rule})")
