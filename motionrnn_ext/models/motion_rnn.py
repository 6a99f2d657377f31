"""MotionRNN: a stack of recurrent cells with a MotionGRU between each two layers and a Motion Highway past them.

One time step reads u, a true or a predicted frame with its patches folded into channels. Y is the highway:

    Y = W_first * u  (only with highway_first)
    for layer l = 1..L:
        H^l, state^l, M = cell_l(X^{l-1}, state^l, M, Y)     X^0 = u; inside the cell H^l += (1 - s(o)).Y
        Y = H^l
        X^l = MotionGRU_l(H^l) for l < L,  X^L = H^L         with carry="motion", X^l replaces H in state^l
    next frame = W_last * X^L  (u + W_last * X^L with residual)

The paper and the released program differ in 29 points; `models/variants.py` lists them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.types import Device
from torch.utils.checkpoint import checkpoint as recomputing

from .. import backends
from ..backends.layouts import memory_format
from ..backends.torch_private import has_saved_tensor_hooks
from ..layers.arguments import check_tensor, check_whole, flag, odd, pair, whole
from ..layers.cells import RecurrentCell, cell_class, make_cell
from ..layers.initial_values import Resettable
from ..layers.motion import MotionState
from ..layers.motion_gru import MotionGRU
from ..layers.motion_gru_cell import PackedGates
from ..layers.plain import check_entries, has_hooks_inside, is_plain
from ..layers.rollout import convolve, current_rollout, resumed, rollout
from ..layers.states import HALVES, adapt_state, check_not_rounded, detached, exportable, under_autocast
from ..layers.tensors import fold_depth, unfold_depth
from ..ops import _arguments as arguments
from .arguments import (
    a_weight,
    check_count,
    check_frames,
    check_generator,
    check_moved,
    check_parts,
    check_state,
    checked_cell_options,
    per_position_size,
    widths,
)
from .checkpoints.description import arguments_of, describe
from .ensembles import NOISE, check_ensemble, disturbing, repeated
from .off_map import warn_of_lost_motion
from .patches import fold_mask, fold_patches, unfold_patches
from .variants import variant_options


@exportable
class MotionRNNState(NamedTuple):
    """The state that a MotionRNN carries from one frame to the next.

    Attributes:
        layers: the states of the L cells, such as `LSTMState`; each has H in the field `hidden`.
        motion: the motion of the L-1 MotionGRUs, offset and trend (B, 2K, h/2, w/2); empty without MotionGRUs.
        memory: the memory that travels through the stack; None for predictors without one.
    """

    layers: tuple[Any, ...]
    motion: tuple[MotionState, ...]
    memory: Any

    def detach(self) -> MotionRNNState:
        """Return the state cut from the graph, for truncated backpropagation."""
        return detached(self)


class MotionRNN(Resettable):
    """MotionRNN on the cells of a predictor; without `motion_gru` and `highway` it is exactly that predictor.

    `forward` predicts every next frame of a sequence (for training), `predict` the frames after a sequence, and `step`
    the next frame of a stream. On the CPU a RuntimeWarning says, once, if most taps of a MotionGRU lie outside of the
    map or its motion is nan; this is checked after a rollout and after every 16th call of `step`.

    Args:
        predictor: the recurrent cell by name: "convlstm", "predrnn", "mim", "e3d_lstm", "conv_tt_lstm", or one
            of your own (`register_predictor`).
        in_channels: C, the channels of a frame.
        hidden_channels: the width of every layer, first to last. All are equal if there is a highway, or a memory that
            travels through the stack.
        patch_size: P; frames are folded to maps of h = H/P, w = W/P with P*P*C channels.
        variant: the preset of options, "paper" or "official" (the released program).
        filter_size: kernel size of the cells' convolutions, odd.
        layer_norm: whether the cells' convolutions have a layer norm, with an affine per position.
        image_size: (H, W) of the frames. Parameters per position need it: those of `layer_norm`, and in any case those
            of "mim" and "e3d_lstm".
        motion_gru: False leaves out the MotionGRUs.
        highway: False leaves out the Motion Highway.
        transient: False leaves out the transient motion, see `MotionGRUCell`.
        trend: False leaves out the motion trend, see `MotionGRUCell`.
        compat: "openstl" for cells that compute what OpenSTL's do where those deviate from their papers, see
            `MIMCell` and `E3DLSTMCell`; "mim" then keeps a state between calls until `reset()`.
        cell_options: arguments that only this predictor's cell has, such as order, steps and rank of
            "conv_tt_lstm".
        device: device of the parameters, as in `nn.Conv2d`.
        dtype: dtype of the parameters, as in `nn.Conv2d`.
        **overrides: single options in place of the variant's, such as max_offset or init_state, see
            `motionrnn_ext.models.variants.Options`.

    Raises:
        ValueError: predictor, variant or a choice is unknown, a size or number is out of range, widths differ although
            all should be equal, or image_size is missing or not divisible by patch_size.
        TypeError: an option is unknown, an argument has another type, or alpha asks for a gradient although no layer
            reads it.

    Examples:
        >>> model = MotionRNN("predrnn", in_channels=1, hidden_channels=(64, 64, 64, 64), patch_size=4)
        >>> frames = torch.rand(8, 20, 1, 64, 64)
        >>> predicted = model(frames, n_input=10)  # (8, 19, 1, 64, 64), frames 1 to 19
    """

    optional = ("conv_first",)
    _has_warned = False
    _steps = 0  # the number of calls of `step`

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
                trend_gate=options.trend_gate,
                zero_init=options.zero_init,
                depth=self._cells()[0].depth > 1,
                **made,
            )
            for width in (hidden[:-1] if motion_gru else ())
        )
        arguments.check_read(options.alpha, bool(self.interfaces), "a model without MotionGRUs")
        project = highway and options.highway_first
        self.conv_first = nn.Conv2d(folded, hidden[0], 1, bias=False, **made) if project else None
        top_channels = hidden[-1] * self._cells()[-1].depth
        self.conv_last = nn.Conv2d(top_channels, folded, 1, bias=False, **made)
        # MotionRNN(**arguments) makes this model again. A state dict holds them, see `checkpoints/description.py`.
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
        if "arguments" not in state:  # pickled by an older version, which had no bound on the motion
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
        """Predict every next frame of a sequence.

        Args:
            frames: (B, T, C, H, W) in [0, 1]; H and W divisible by 2*patch_size (patch_size without MotionGRUs).
            n_input: the number of given frames, 1 to T; at later steps the model reads its own predictions.
            sampling_mask: scheduled sampling at the steps n_input to T-2: 1 reads the true frame, 0 the prediction, and
                a value between mixes them. It should broadcast to (B, T-1-n_input, C, H, W). None is 0 throughout.
            state: the state before the first frame; None for `initial_state`.
            reverse_sampling: whether the mask covers the steps 1 to T-2, (B, T-2, C, H, W), given frames included.
            return_motion: whether to return the motion after every step as well.
            generator: the generator that init_state="xavier" draws with.
            checkpoint: whether to keep only the state after each step, and compute the step again in backward. This
                takes 7 to 10 times less memory and 1.3 to 1.4 times the time (4 layers of 64 channels, 64x64 pixels,
                T = 11, CPU).

        Returns:
            The predictions of frames 1 to T-1, (B, T-1, C, H, W); the first n_input-1 are those of given frames. With
            `return_motion` a pair of these and a list of one `MotionState` per MotionGRU, offset and trend (B, T-1, 2K,
            h/2, w/2), or (B, T-1, W, 2K, h/2, w/2) for maps with a depth of W. K row offsets come first, then K column
            offsets, taps row by row, in pixels of the half-size map; one is 2*patch_size pixels of the image.

        Raises:
            ValueError: frames, the mask or the state has a shape that does not fit, n_input is out of range, or
                `checkpoint` is chosen for cells that keep a state between calls.
            TypeError: an argument has another type or dtype.
        """
        self._check_frames(frames, rank=5)
        check_count("n_input", n_input)
        total = frames.shape[1]
        if total < 2 or not 1 <= n_input <= total:
            raise ValueError(f"n_input is {n_input} and T {total}; they should be 1 <= n_input <= T, 2 <= T")
        folded = self._fold(frames)
        # Steps before `start` read the true frame.
        mask, start = None, n_input
        if sampling_mask is not None:
            check_tensor("sampling_mask", sampling_mask)
            start = 1 if reverse_sampling else n_input
            mask = fold_mask(sampling_mask, frames[:, start : total - 1], self.patch_size).unbind(1)

        def read(t: int, prediction: Tensor | None) -> Tensor:
            if prediction is None or t < start:
                return folded[t]
            if mask is None:
                return prediction
            return torch.lerp(prediction.to(folded[t].dtype), folded[t], mask[t - start])

        state = self._start(frames, state, generator)
        predictions, motion, _ = self._rollout(read, total - 1, state, checkpoint, all_motion=return_motion)
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
        *,
        members: int | None = None,
        noise: float = NOISE,
    ) -> Tensor:
        """Predict the frames after a sequence, without gradients, or an ensemble of such predictions.

        Args:
            frames: (B, T, C, H, W) in [0, 1], with T of 1 or more; H and W as in `forward`.
            n_future: the number of frames to predict, at least 1.
            state: the state before the first frame; None for `initial_state`.
            generator: the generator that init_state="xavier" and an ensemble's noise draw with.
            members: N, the number of predictions of an ensemble, which is our addition, not the paper's, see
                `motionrnn_ext.models.ensembles`; None for one prediction without noise.
            noise: the standard deviation of an ensemble's noise as a share of the root mean square of a hidden map.

        Returns:
            The next n_future frames, (B, n_future, C, H, W), or with `members` (B, N, n_future, C, H, W).

        Raises:
            ValueError: frames or the state has a shape that does not fit, T, n_future or members is below 1, noise is
                below 0, or members is given for cells that keep a state between calls.
            TypeError: an argument has another type or dtype.
        """
        self._check_frames(frames, rank=5)
        check_count("n_future", n_future)
        given = frames.shape[1]
        if given < 1 or n_future < 1:
            raise ValueError(f"frames has T = {given}, n_future is {n_future}; both should be at least 1")
        if members is not None:
            check_ensemble(members, noise, generator, self._weight().device, self._cells())
        folded = self._fold(frames)

        def read(t: int, prediction: Tensor | None) -> Tensor:
            return folded[t] if prediction is None or t < given else prediction

        state = self._start(frames, state, generator)
        if members is None:
            predictions, _, _ = self._rollout(read, given + n_future - 1, state, first=given - 1)
            return unfold_patches(torch.stack(predictions, dim=1), self.patch_size)
        if given > 1:
            _, _, state = self._rollout(read, given - 1, state)
        last = folded[-1].repeat_interleave(members, 0).contiguous(memory_format=self._memory_format())
        predictions, _, _ = self._rollout(
            lambda _, prediction: last if prediction is None else prediction,
            n_future,
            repeated(state, members, len(frames)),
            disturb=disturbing(noise, generator),
        )
        future = unfold_patches(torch.stack(predictions, dim=1), self.patch_size)
        return future.unflatten(0, (len(frames), members))

    def step(self, frame: Tensor, state: MotionRNNState | None = None) -> tuple[Tensor, MotionRNNState]:
        """Read one frame of a stream, and predict the next.

        Args:
            frame: (B, C, H, W) in [0, 1]; H and W as in `forward`.
            state: the state that the previous step returned; None at the start of a stream.

        Returns:
            The predicted next frame, (B, C, H, W), and the state after this step.

        Within `rollout` steps share their weights, which is faster.

        Raises:
            ValueError: frame or the state has a shape that does not fit.
            TypeError: frame or the state has another type or dtype.
            RuntimeError: a weight has been changed since the `rollout` began.
        """
        active = current_rollout()
        # The block of another model shares nothing with this one. A step that checkpointing computes again is computed
        # outside of the block, and has to be what was saved.
        if active is not None and active.is_block and (active.owner is not self or has_saved_tensor_hooks()):
            with resumed(None):
                return self.step(frame, state)
        self._check_frames(frame, rank=4)
        state = self._start(frame, state, None)
        if active is None:
            packed = self._pack()
        else:
            if active.has_other_weights(self):
                raise RuntimeError(
                    "step: weights or hooks of the model have been changed within rollout(); leave the block, and "
                    "begin another, which reads the new weights"
                )
            packed = active.share((self, "packed"), self._pack)
        prediction, state = self._advance(fold_patches(frame, self.patch_size), state, packed)
        if not torch.compiler.is_compiling():
            self._steps += 1
            if self._steps % 16 == 0:
                self._warn_of_lost_motion(state, "after this step")
        return unfold_patches(prediction, self.patch_size), state

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """Share the weights between the calls of `step` of this thread within a `with` block.

        They are laid out and packed at the first step, as `forward` and `predict` do it: on one core of an AMD EPYC a
        step without gradients takes half the time. Weights and hooks should stay as they are within the block. With
        gradients there should be one backward pass for all of its steps.

        Examples:
            >>> model, state = MotionRNN("predrnn", 1, (64, 64)), None
            >>> with torch.no_grad(), model.rollout():
            ...     for frame in torch.rand(5, 2, 1, 64, 64):
            ...         prediction, state = model.step(frame, state)
        """
        with rollout(self):
            active = current_rollout()
            if active is not None:
                active.note(self)
            yield

    def initial_state(
        self, batch_size: int, height: int, width: int, generator: torch.Generator | None = None
    ) -> MotionRNNState:
        """Return the state before the first frame.

        By `options.init_state` it is zero, or Xavier-normal: std sqrt(2 / ((C + B) h w)) for a tensor (B, C, h, w). The
        draws have the order of the official program, with those that it never uses, so that one seed gives the same
        numbers. H and C of a layer have the same values, and so have F and D of a MotionGRU (with trend=False D is 0).

        Args:
            batch_size: B, the number of sequences.
            height: H, the height of the frames in pixels.
            width: W, the width of the frames in pixels.
            generator: the generator that init_state="xavier" draws with.

        Returns:
            The state, with the device and dtype of the parameters; the motion is float32 or float64.

        Raises:
            ValueError: a size is below 0, or the generator is on another device.
            TypeError: a size is no whole number, or generator is no `torch.Generator`.
        """
        for name, value in (("batch_size", batch_size), ("height", height), ("width", width)):
            check_whole(name, value, at_least=0)
        weight = self._weight()
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
            draw((slices, width // 4, h // 2, w // 2))  # the program draws this one and never uses it
            offset = draw((slices, 2 * self.options.kernel_size**2, h // 2, w // 2), motion_dtype)
            motion.append(MotionState(offset, offset.clone() if self.trend else torch.zeros_like(offset)))
        if cells[0].has_memory:
            memory = cells[0].initial_memory(draw(cells[0].hidden_shape(batch_size, h, w)))
        draw(cells[0].hidden_shape(batch_size, h, w))  # the program draws a highway, and never uses it
        return MotionRNNState(tuple(layers), tuple(motion), memory)

    def save_pretrained(self, folder: str | os.PathLike[str], *, float16: bool = False) -> None:
        """Write the weights and the arguments of this model to a folder, as model.safetensors and config.json.

        `from_pretrained` and `load_checkpoint` make the same model of it. No file of it can run code. Pruning masks
        are applied. If writing is cut short, an older file stays as it is.

        Args:
            folder: the folder, which is made if it is not there.
            float16: whether to store the weights in float16, in half the space; they are loaded as float32.

        Raises:
            ValueError: the model has code of its own, such as another forward, or parameters that are sharded, without
                values or of several dtypes.
            TypeError: config.json cannot hold an argument of the model, or its layers differ.
            ModuleNotFoundError: the package safetensors is not installed.
            OSError: a file cannot be written.

        Examples:
            >>> model.save_pretrained("mine", float16=True)
        """
        from .checkpoints.pretrained import save_pretrained

        save_pretrained(self, folder, float16=float16)

    @staticmethod
    def from_pretrained(source: str | os.PathLike[str], *, revision: str | None = None) -> MotionRNN:
        """Return a trained model, in evaluation mode on the CPU.

        Args:
            source: a folder that `save_pretrained` wrote; the name of weights that come with the package, such as
                "vmnist-small"; or OWNER/NAME of such a folder on the Hugging Face Hub, which is downloaded once.
            revision: the branch, tag or commit on the Hub.

        Raises:
            FileNotFoundError: there are no such weights.
            ValueError: a file is damaged, or the weights do not fit the arguments.
            ModuleNotFoundError: the package safetensors is not installed, or huggingface_hub for the Hub.

        Examples:
            >>> model = MotionRNN.from_pretrained("vmnist-small")
        """
        from .checkpoints.pretrained import load_pretrained

        return load_pretrained(source, revision=revision)

    def reset(self) -> None:
        """Forget the state that cells with compat="openstl" keep between sequences."""
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
        disturb: Callable[[MotionRNNState], MotionRNNState] | None = None,
    ) -> tuple[list[Tensor], list[tuple[MotionState, ...]], MotionRNNState]:
        """Take `steps` time steps; `read(t, last prediction)` returns the input of step t.

        With `disturb` every step begins with the state that it returns. Return the folded predictions from step `first`
        on, (B, P*P*C, h, w) each, with `all_motion` the motion after each step, and the last state.
        """
        recompute = recompute and torch.is_grad_enabled()
        advance = self._recomputed if recompute else self._advance
        predictions: list[Tensor] = []
        motion: list[tuple[MotionState, ...]] = []
        packed, prediction = self._pack(), None
        pixels = state.layers[0].hidden[:, 0].numel()
        with rollout(self, steps, pixels, recompute):
            for t in range(steps):
                state = state if disturb is None else disturb(state)
                prediction, state = advance(read(t, prediction), state, packed)
                if t >= first:
                    predictions.append(prediction)
                if all_motion:
                    motion.append(state.motion)
        self._warn_of_lost_motion(state, f"after step {steps}")
        return predictions, motion, state

    def _warn_of_lost_motion(self, state: MotionRNNState, when: str) -> None:
        if not self._has_warned and warn_of_lost_motion(state.motion, when):
            self._has_warned = True

    def _advance(
        self, x: Tensor, state: MotionRNNState, packed: Sequence[PackedGates | None]
    ) -> tuple[Tensor, MotionRNNState]:
        """Take one time step: from x (B, P*P*C, h, w) to the prediction, of the same shape, and the next state."""
        layers, motion, memory, frame = [], [], state.memory, x
        x = self._cells()[0].embed(x, state.layers[0])  # (B, P*P*C, h, w), or with a depth axis
        highway = (
            None if self.conv_first is None else unfold_depth(convolve(self.conv_first, fold_depth(x)), x)
        )
        for level, cell in enumerate(self.cells):
            after = cell(x, state.layers[level], memory, highway)
            check_entries(f"cells[{level}]", after, "h", "state", "memory")
            x, layer, memory = after
            if self.highway:
                highway = x  # the block's output, before the MotionGRU
            if level < len(self.interfaces):
                ahead = () if packed[level] is None else (packed[level],)
                moved = self.interfaces[level](x, state.motion[level], *ahead)
                check_moved(level, moved)
                x, motion_after = moved
                motion.append(motion_after)
                if self.options.carry == "motion":
                    layer = layer._replace(hidden=x)
            layers.append(layer)
        prediction = convolve(self.conv_last, x.flatten(1, -3))
        if self.options.residual:
            prediction = frame + prediction
        return prediction, MotionRNNState(tuple(layers), tuple(motion), memory)

    def _recomputed(self, *inputs: Any) -> tuple[Tensor, MotionRNNState]:
        """Take one time step, as `_advance` does, but keep only the inputs for backward."""
        if any(cell.keeps_state and cell.compat for cell in self._cells()):
            raise ValueError(
                f"checkpoint is True; it should be False for {self.predictor!r} with compat='openstl', whose cells "
                "keep a state from call to call: a step computed again would be another"
            )
        if torch.compiler.is_compiling():  # the graph holds the choice of the backend
            return recomputing(self._advance, *inputs, use_reentrant=False)
        name, active = backends.current_backend(), current_rollout()
        # Tensors that `torch.func.functional_call` has put in place of the parameters. Backward runs after that call.
        named = self.named_parameters("model", remove_duplicate=False)
        lent: dict[str, Tensor] = {path: t for path, t in named if not isinstance(t, nn.Parameter)}

        def advance(*inputs: Any) -> tuple[Tensor, MotionRNNState]:
            # Backward may run in another thread, or outside of the blocks that chose the backend and the weights.
            with backends.backend(name), resumed(active):
                step = _Advance(self)
                return functional_call(step, lent, inputs, tie_weights=False) if lent else step(*inputs)

        return recomputing(advance, *inputs, use_reentrant=False)

    def _fold(self, frames: Tensor) -> list[Tensor]:
        """Return the folded frame of every step, (B, P*P*C, h, w), dense, since several convolutions read it."""
        layout, folded = self._memory_format(), fold_patches(frames.transpose(0, 1), self.patch_size)
        return [frame.contiguous(memory_format=layout) for frame in folded]

    def _over_time(self, steps: tuple[Tensor, ...]) -> Tensor:
        """Stack T-1 tensors (B, ...) or (B*W, ...) over time, to (B, T-1, ...) or (B, T-1, W, ...)."""
        stacked, depth = torch.stack(steps, dim=1), self._cells()[0].depth
        return stacked if depth == 1 else stacked.unflatten(0, (-1, depth)).movedim(1, 2)

    def _cells(self) -> list[RecurrentCell]:
        return cast("list[RecurrentCell]", list(self.cells))

    def _motion_grus(self) -> list[MotionGRU]:
        return cast("list[MotionGRU]", list(self.interfaces))

    def _weight(self) -> Tensor:
        """Return the parameter that gives the states' dtype and device."""
        return a_weight(self.conv_last, self)

    def _memory_format(self) -> torch.memory_format:
        """Return channels_last if a weight is in channels_last only; weights of size 1x1 are in both formats."""
        # A weight of nn.LazyConv2d has no dimensions before its first call.
        weights = (p for p in self.parameters() if not isinstance(p, nn.UninitializedParameter))
        formats = (memory_format(weight) for weight in weights if weight.dim() == 4)
        return torch.channels_last if torch.channels_last in formats else torch.contiguous_format

    def _pack(self) -> Sequence[PackedGates | None]:
        """Return the packed weights of every MotionGRU, or None for one whose weights may change in its forward.

        Hooks may change them (FSDP's gather the weights), and a user's module may compute them.
        """
        if has_hooks_inside(self):
            return [None] * len(self.interfaces)
        return [gru.pack_ahead() if is_plain(gru, MotionGRU) else None for gru in self._motion_grus()]

    def _start(
        self, frames: Tensor, state: MotionRNNState | None, generator: torch.Generator | None
    ) -> MotionRNNState:
        """Return the state to start from, checked against the model and the frames."""
        batch_size, (height, width) = frames.shape[0], frames.shape[-2:]
        check_parts(self.cells, self.interfaces)
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
        map_size = height // self.patch_size, width // self.patch_size
        map_shape = self._cells()[0].hidden_shape(batch_size, *map_size)
        check_state(state, len(self.cells), len(self.interfaces), map_shape)
        if self._cells()[0].has_memory and state.memory is None:
            raise ValueError(
                f"state has no memory; {self.predictor!r} has one, as initial_state and step return"
            )
        for motion in state.motion:
            check_not_rounded(self, "motion", motion.offset)
        if under_autocast(frames):
            return state
        weights = self._weight().dtype if frames.dtype in HALVES else frames.dtype
        return adapt_state(state, frames.dtype, weights)

    def _check_frames(self, frames: Tensor, rank: int) -> None:
        check_frames(frames, rank, self.in_channels, self.image_size, self.patch_size, bool(self.interfaces))


class _Advance(nn.Module):
    """A MotionRNN that is called for one time step."""

    def __init__(self, model: MotionRNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> tuple[Tensor, MotionRNNState]:
        return self.model._advance(*inputs)
