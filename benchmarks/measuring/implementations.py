"""Give the implementations of an op or the cell one form: prepared inputs, a function, its parameters.

ours                    the package's kernels; of the convolution, packing its weight is not in its time
triton                  the package's Triton kernels
..., deterministic      under torch.use_deterministic_algorithms(True)
reference               the package's plain PyTorch, eager
reference, compiled     the same by torch.compile
reference, CUDA graphs  by torch.compile(mode="reduce-overhead"), on a GPU
plain                   a cell as one writes it from the equations (`plain_cell`, `plain_lstm`), eager
plain, compiled         the same by torch.compile
torchvision             deform_conv2d for the warp; interleaving the offsets and the mask's sigmoid are not in its time
official                the released program's Warp, with given mask logits, or its MotionGRU (`official`)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from motionrnn_ext import backend, backends, ops
from motionrnn_ext.backends import convolution, native, triton
from motionrnn_ext.backends.reference import memory_format
from motionrnn_ext.backends.registration import direct

from . import lstm_steps
from .cell_cases import CELLS
from .op_cases import BACKWARD, FORWARD, LAYOUTS, NUMBERS, Case, as_tuple, cotangents, reference_function
from .roofline import WITHOUT_HIGHWAY
from .subjects import Unavailable

if TYPE_CHECKING:
    from .official import Program

Function = Callable[..., Any]
Results = tuple[list[Tensor], list[Tensor]]
WITHOUT_X = 14  # bits of the wanted gradients: offset 2, mask 4, weight 8; x would be 1


@dataclass
class Implementation:
    """An implementation in a layout.

    prepare: makes the function's inputs from the case's. restore: turns gradients by the function's inputs into those
    by the case's. tolerance: replaces the case's; inf means no limit. can_be_captured: in a CUDA graph of our own.
    """

    name: str
    layout: str
    function: Function
    parameters: list[Tensor] = field(default_factory=list)
    prepare: Callable[[list[Tensor]], list[Tensor]] = lambda inputs: inputs
    restore: Callable[[list[Tensor], list[Tensor]], list[Tensor]] = lambda inputs, grads: grads
    deterministic: bool = False
    tolerance: float | None = None
    compiled: bool = False
    can_be_captured: bool = True

    def call(self, case: Case, inputs: Sequence[Tensor]) -> tuple[Callable[[], Any], list[Tensor]]:
        """Return a call of the case's direction on these inputs, and all the tensors that it starts from."""
        leaves = self.prepare([_laid_out(t, self.layout) for t in inputs])
        if case.direction == FORWARD:
            return self._switched(torch.no_grad()(lambda: self.function(*leaves))), leaves
        if case.direction == BACKWARD:
            return lambda: self.function(*leaves), leaves
        leaves = [t.detach().requires_grad_() for t in leaves]
        grads = cotangents(as_tuple(self.function(*leaves)))
        wanted = [*leaves, *self.parameters]

        def both() -> object:
            outputs = as_tuple(self.function(*leaves))
            return outputs, torch.autograd.grad(outputs, wanted, grads)

        return self._switched(both), wanted

    def forward(self, leaves: Sequence[Tensor]) -> object:
        """Run the forward pass of a call that started from `leaves`."""
        return self.function(*leaves[: len(leaves) - len(self.parameters)])

    def results(self, case: Case, call: Callable[[], Any], leaves: list[Tensor]) -> Results:
        """Return the outputs and gradients of a call in the order of `exact_results`."""
        made = call()
        if case.direction == FORWARD:
            return list(as_tuple(made)), []
        if case.direction == BACKWARD:
            return [], list(made)
        outputs, grads = made
        return list(outputs), self.restore(leaves, list(grads))

    def _switched(self, call: Callable[[], Any]) -> Callable[[], Any]:
        if not self.deterministic:
            return call

        def switched() -> object:
            torch.use_deterministic_algorithms(True)
            try:
                return call()
            finally:
                torch.use_deterministic_algorithms(False)

        return switched


def _laid_out(t: Tensor, layout: str) -> Tensor:
    is_map = t.dim() == 4 and t.shape[2:] != (3, 3)  # the tap weights keep their order
    return t.contiguous(memory_format=LAYOUTS[layout]) if is_map else t


def implementation(
    name: str, layout: str, case: Case, device: str, program: Program | None = None
) -> Implementation:
    """Return one of the implementations of this module's docstring for a case; `program` is the official one."""
    base, _, variant = name.partition(", ")
    if base == "triton" and (why := backends.unavailable_reason(base)):
        raise Unavailable(why)
    if variant == "CUDA graphs" and device != "cuda":
        raise Unavailable("CUDA graphs need a GPU")
    if base == "official":
        made = _official(case, device, program)
    elif case.op in CELLS:
        made = _cell(base, layout, case, device)
    elif base == "torchvision":
        made = _torchvision(case)
    elif case.direction == BACKWARD:
        made = _raw_backward(base, layout, case, variant)
    elif base == "reference":
        made = Implementation(base, layout, reference_function(case.op))
    else:
        made = Implementation(base, layout, _op(base, case.op))
    made.name = name
    made.deterministic = variant == "deterministic"
    if variant == "compiled":
        made.function = torch.compile(made.function, dynamic=False, fullgraph=True)
    elif variant == "CUDA graphs":
        made.function, made.can_be_captured = _graphed(made.function), False
    made.compiled = variant in ("compiled", "CUDA graphs")
    return made


def _graphed(function: Function) -> Function:
    compiled = torch.compile(function, dynamic=False, fullgraph=True, mode="reduce-overhead")

    def call(*inputs: Tensor) -> object:
        torch.compiler.cudagraph_mark_step_begin()  # the last call's results may be overwritten
        return compiled(*inputs)

    return call


def _official(case: Case, device: str, program: Program | None) -> Implementation:
    if program is None:
        raise Unavailable("no checkout of the official program was named")
    # Every call moves index grids to the device, which a CUDA graph cannot hold.
    if case.op == "offset_warp":
        warp = program.offset_warp(case.shape.channels, device)
        # The program rounds places on the map, not offsets: at 64x64 some taps cross an integer, where a gradient
        # jumps (measured: 4e-3).
        return Implementation("official", "NCHW", warp, tolerance=2e-2, can_be_captured=False)
    cell = program.motion_gru(case.shape.channels, case.cell_weights(), device)
    parameters: list[Tensor] = [p for _, p in sorted(cell.named_parameters())]
    return Implementation("official", "NCHW", cell, parameters, can_be_captured=False)


class _Convolution(torch.autograd.Function):
    """A convolution by one weight for many calls, with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, conv: convolution.Convolution) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.conv = conv
        return conv.run(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        to_weight, _ = ctx.conv.weight_gradients([grad], [x], weight, (True, False))
        return ctx.conv.data_gradient(grad, x, weight), to_weight, None


def _convolution() -> Function:
    made: dict[int, convolution.Convolution] = {}

    def call(x: Tensor, weight: Tensor) -> Tensor:
        same = convolution.Geometry((1, 1), (2, 2))
        conv = made.setdefault(weight.data_ptr(), convolution.Convolution(same))
        return _Convolution.apply(x, weight, conv)

    return call


def _op(base: str, op: str) -> Function:
    if op == "convolution":
        return _convolution()
    if op in lstm_steps.JOINTS:
        return lstm_steps.of_backend(op, (triton if base == "triton" else native).NAMESPACE)
    function, numbers = getattr(ops, op.removesuffix(WITHOUT_HIGHWAY)), NUMBERS.get(op, ())
    return _on(base, lambda *tensors: function(*tensors, *numbers))


def _on(base: str, function: Function) -> Function:
    """Return the function with the backend that an implementation's name asks for; ours is the one in force."""
    if base not in ("reference", "triton"):
        return function

    def chosen(*inputs: Tensor) -> object:
        with backend(base):
            return function(*inputs)

    return chosen


def _cell(base: str, layout: str, case: Case, device: str) -> Implementation:
    cell = CELLS[case.op]
    make = cell.plain if base == "plain" else cell.ours
    if make is None:
        raise Unavailable(f"{case.op} has no plain form")
    module = make(case.shape.channels)
    module.load_state_dict(case.cell_weights(), strict=True)
    module = module.to(device, case.torch_dtype).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    parameters = [p for _, p in sorted(module.named_parameters())]
    function = module if base == "plain" else _on(base, partial(cell.step, module))
    return Implementation(base, layout, function, parameters)


def _raw_backward(base: str, layout: str, case: Case, variant: str) -> Implementation:
    """Return the warp's backward op by itself; its arguments are grad, the inputs, what is wanted, and the mode."""
    if case.op != "offset_warp":
        raise ValueError(f"{case}: backward by itself is measured for offset_warp")
    wanted = WITHOUT_X if variant == "without grad_x" else 15
    deterministic = variant == "deterministic"

    def prepare(inputs: list[Tensor]) -> list[Tensor]:
        x = inputs[0]
        grad = cotangents([torch.empty_like(x, memory_format=memory_format(x))])  # C_out is C
        return [*grad, *inputs]

    kernels = getattr(torch.ops, (triton if base == "triton" else native).NAMESPACE)

    def function(*tensors: Tensor) -> object:
        return direct.run(kernels.offset_warp_backward.default, (*tensors, wanted, deterministic))

    return Implementation(base, layout, function, prepare=prepare)


def _torchvision(case: Case) -> Implementation:
    try:
        from torchvision.ops import deform_conv2d
    except ImportError as error:
        raise Unavailable(str(error)) from error
    dtype = case.torch_dtype

    def prepare(inputs: list[Tensor]) -> list[Tensor]:
        x, offset, mask_logits, weight = inputs
        pairs = torch.stack(offset.chunk(2, dim=1), dim=2).flatten(1, 2)  # row, column of each tap in turn
        return [x, pairs.to(dtype), mask_logits.float().sigmoid().to(dtype), weight]

    def restore(leaves: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        grad_x, grad_pairs, grad_mask, grad_weight = grads
        grad_offset = torch.cat([grad_pairs[:, 0::2], grad_pairs[:, 1::2]], dim=1)
        mask = leaves[2].detach().double()
        return [grad_x, grad_offset, grad_mask * mask * (1 - mask), grad_weight]

    # torchvision rounds coordinates in the features' dtype: in half precision, hundredths of a pixel on large maps.
    tolerance = 2e-2 if case.dtype == "float32" else float("inf")
    return Implementation(
        "torchvision",
        "NCHW",
        lambda x, offset, mask, weight: deform_conv2d(x, offset, weight, padding=1, mask=mask),
        prepare=prepare,
        restore=restore,
        tolerance=tolerance,
    )
