"""Random cases of the modules: what hypothesis draws, and the check against the reference in float64.

Convolutions stand between the ops of a module; they are torch's, in the module's dtype, and round as well. So a module
is also run in its own dtype on the reference ops, and may be four times as far from float64 as that, beside the stated
tolerance. Where a sampling coordinate of the float64 run is nearer to an integer than rounding may move it, the
gradients are not compared: they jump there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from case import generator
from comparing import TOLERANCE
from fuzzing import Layout, layouts
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from under_test import REFERENCE, UnderTest

from motionrnn_ext import MotionGRU, MotionGRUCell, MotionRNN
from motionrnn_ext.backends import reference
from motionrnn_ext.layers import MotionState
from motionrnn_ext.layers.cells import CELLS, cell_class

OWN_OPTIONS = {"e3d_lstm": {"window": 2}, "conv_tt_lstm": {"order": 2, "steps": 2, "rank": 3}}
MODULES = ("cell", "gru", *CELLS, "model")


@dataclass(frozen=True)
class DrawnModule:
    kind: str
    options: dict[str, Any]
    shape: tuple[int, int, int, int]  # of what the module reads
    given_state: bool
    offsets: float  # scale of the motion state
    dtype: torch.dtype
    layout: Layout  # of what the module reads
    grad: Layout
    wanted: str  # "all", "inputs", "parameters", "some"
    seed: int

    def module(self) -> nn.Module:
        """Return the module in its dtype, with every parameter drawn."""
        options, (_, channels, height, width) = dict(self.options), self.shape
        torch.manual_seed(self.seed)
        if self.kind == "cell":
            made: nn.Module = MotionGRUCell(channels, **options)
        elif self.kind == "gru":
            made = MotionGRU(channels, **options)
        elif self.kind == "model":
            size = (height, width)
            made = MotionRNN(
                in_channels=channels, hidden_channels=(8, 8), filter_size=3, image_size=size, **options
            )
        else:
            cell = cell_class(self.kind).of_layer(options.pop("level"))
            made = cell(channels, map_size=(height, width), **options)
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.2)
        return made.to(self.dtype)

    def inputs(self, module: nn.Module, device: str) -> list[Tensor]:
        g, (batch, _, height, width) = generator(self.seed), self.shape

        def normal(*shape: int, scale: float = 1.0, state: bool = False) -> Tensor:
            dtype = torch.float32 if state and self.dtype != torch.float64 else self.dtype
            t = (scale * torch.randn(shape, generator=g, dtype=torch.float64)).to(device, dtype)
            return self.layout.of(t) if t.dim() == 4 else t

        if self.kind == "model":
            frames = torch.rand(batch, 3, *self.shape[1:], generator=g, dtype=torch.float64)
            return [frames.to(device, self.dtype)]
        if self.kind in ("cell", "gru"):
            halved = 2 if self.kind == "gru" else 1
            size = (height // halved, width // halved)
            motion = module.motion_channels if self.kind == "cell" else module.cell.motion_channels
            n = 2 if self.kind == "cell" or self.given_state else 0
            return [
                normal(*self.shape),
                *(normal(batch, motion, *size, scale=self.offsets, state=True) for _ in range(n)),
            ]
        depth = () if module.depth == 1 else (module.depth,)
        hidden = module.hidden_shape(batch, height, width)
        x = (batch, module.in_channels, *depth, height, width)
        return [normal(*x), normal(*x), *(normal(*hidden) for _ in range(4))]

    def run(self, module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        """Two steps, or three frames."""
        if self.kind == "model":
            return tree_leaves(module(inputs[0], 2, return_motion=True))
        if self.kind == "cell":
            x, offset, trend = inputs
            first = module(x, offset, trend)
            return [*first, *module(x, *first[1:])]
        if self.kind == "gru":
            x, *state = inputs
            first = module(x, MotionState(*state) if state else None)
            return tree_leaves([first, module(x, first[1])])
        x, later, hidden, cell, memory, highway = inputs
        state = module.initial_state(hidden)
        state = state._replace(cell=cell) if hasattr(state, "cell") else state
        below = cell_class(self.kind).of_layer(0)
        carried = below.initial_memory(module, memory) if module.has_memory else None
        h, state, carried = module(x, state, carried, highway if self.given_state else None)
        return tree_leaves([h, module(later, state, carried, h)])


@st.composite
def drawn_module(draw: Callable[..., Any], kind: str, dtypes: tuple[torch.dtype, ...]) -> DrawnModule:
    odd = st.sampled_from([1, 3])
    batch, sizes = draw(st.sampled_from([0, 1, 2, 3])), st.sampled_from([1, 2, 3, 5, 7])
    size = draw(st.tuples(sizes, sizes))
    channels = draw(st.sampled_from([1, 2, 3, 4, 7, 8]))
    options: dict[str, Any] = {}
    if kind in ("cell", "gru"):
        options = {
            "kernel_size": draw(st.sampled_from([1, 3, 3, 5])),
            "alpha": draw(st.sampled_from([0.5, 0.2, 1.0])),
            "gate_kernel_size": draw(odd),
            "mask_kernel_size": draw(odd),
            **draw(st.sampled_from([{}, {}, {"trend": False}, {"transient": False}])),
        }
    if kind == "cell":
        options["out_channels"] = draw(st.sampled_from([None, 1, 3, 8]))
    elif kind == "gru":
        channels, size = draw(st.sampled_from([4, 7, 12, 16])), (2 * size[0], 2 * size[1])
        options |= {
            "encoder_kernel_size": draw(st.sampled_from([3, 4, 5])),
            "blend_kernel_size": draw(odd),
            "gate_side": draw(st.sampled_from(["hidden", "decoded"])),
        }
    elif kind == "model":
        channels, size = draw(st.sampled_from([1, 3])), (4 * min(size[0], 3), 4 * min(size[1], 3))
        predictor = draw(st.sampled_from(list(CELLS)))
        options = {
            "predictor": predictor,
            "patch_size": draw(st.sampled_from([1, 2])),
            "variant": draw(st.sampled_from(["paper", "official"])),
            "highway": draw(st.booleans()),
            "cell_options": OWN_OPTIONS.get(predictor, {}),
        }
    else:
        level = draw(st.sampled_from([0, 1]))
        wide = level and cell_class(kind).of_layer(1) is not cell_class(kind).of_layer(0)  # MIM's
        options = {
            "level": level,
            "hidden_channels": channels if wide else draw(st.sampled_from([1, 2, 4, 8])),
            "filter_size": draw(odd),
            "layer_norm": kind != "conv_tt_lstm" and draw(st.booleans()),
            **OWN_OPTIONS.get(kind, {}),
        }
    return DrawnModule(
        kind,
        options,
        (batch, channels, *size),
        draw(st.booleans()),
        draw(st.sampled_from([1.5, 0.0, 0.1, 6.0, 40.0])),
        draw(st.sampled_from(dtypes)),
        draw(layouts(4)),
        draw(layouts(4)),
        draw(st.sampled_from(["all", "all", "inputs", "parameters", "some"])),
        draw(st.integers(0, 2**16)),
    )


# ---- The check


def check_module(on: UnderTest, case: DrawnModule) -> bool:
    """Returns whether gradients were compared, too."""
    module = case.module().to(on.device)
    inputs = case.inputs(module, on.device)
    leaves = _leaves(case, module, inputs)
    exact_module, exact_inputs = copy.deepcopy(module).cpu().double(), [_exact(t) for t in inputs]
    exact_leaves = _leaves(case, exact_module, exact_inputs)

    sampled: list[Tensor] = []
    warp = reference.offset_warp

    def recorded(x: Tensor, offset: Tensor, *rest: Tensor) -> Tensor:
        sampled.append(offset.detach())
        return warp(x, offset, *rest)

    with REFERENCE.chosen(), mock.patch.object(reference, "offset_warp", recorded):
        expected = _results(case, exact_module, exact_inputs, exact_leaves)
    with REFERENCE.chosen():
        rough = _results(case, module, inputs, leaves)
    with on.chosen():
        actual = _results(case, module, inputs, leaves)
    margin = 64 * torch.finfo(case.dtype).eps
    near = any(((o - o.round()).abs() < margin * (1 + o.abs())).logical_and(o != 0).any() for o in sampled)
    for name, e in expected.items():
        if name.startswith("gradient") and near:
            continue
        a, r = actual[name], rough[name]
        assert a.dtype == r.dtype and a.shape == e.shape, f"{name}: {a.dtype} {tuple(a.shape)}"
        scale, lost = _largest(e), _largest(r.cpu().double() - e)
        error = _largest(a.cpu().double() - e)
        allowed = TOLERANCE[case.dtype] * scale + 4 * lost
        assert error <= allowed, (
            f"{name}: {error:.3g} from float64, {allowed:.3g} allowed, the largest is {scale:.3g}"
        )
    return not near


def _exact(t: Tensor) -> Tensor:
    return t.detach().cpu().double().contiguous()


def _leaves(case: DrawnModule, module: nn.Module, inputs: list[Tensor]) -> dict[str, Tensor]:
    """Return the tensors that gradients are taken by; nothing else asks for them."""
    leaves = {f"input {i}": t for i, t in enumerate(inputs)} if case.wanted != "parameters" else {}
    if case.wanted != "inputs":
        leaves |= dict(module.named_parameters())
    if case.wanted == "some":
        leaves = {name: t for i, (name, t) in enumerate(leaves.items()) if (i + case.seed) % 3}
    module.requires_grad_(False)
    for t in leaves.values():
        t.requires_grad_()
    return leaves


def _results(
    case: DrawnModule, module: nn.Module, inputs: list[Tensor], leaves: dict[str, Tensor]
) -> dict[str, Tensor]:
    outputs = [t for t in case.run(module, inputs) if t is not None]
    g = generator(case.seed + 1)
    results = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    given = []
    for o in outputs:
        grad = torch.randn(o.shape, generator=g).to(case.dtype).to(o)
        given.append(case.grad.of(grad) if o.dim() == 4 else grad)
    used = [(o, c) for o, c in zip(outputs, given) if o.requires_grad]
    if used and leaves:
        grads = torch.autograd.grad(
            [o for o, _ in used], list(leaves.values()), [c for _, c in used], allow_unused=True
        )
        results |= {
            f"gradient of {n}": torch.zeros_like(t) if g is None else g
            for (n, t), g in zip(leaves.items(), grads)
        }
    return results


def _largest(t: Tensor) -> float:
    return t.abs().nan_to_num(nan=float("inf")).max().item() if t.numel() else 0.0
