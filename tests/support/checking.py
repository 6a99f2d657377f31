"""Values and gradients of a case against the reference in float64."""

from __future__ import annotations

import torch
from case import Case, generator
from comparing import TOLERANCE, assert_close
from torch import Tensor
from under_test import REFERENCE, UnderTest

from motionrnn_ext.backends.layouts import memory_format


def exactly(inputs):
    """The same values in float64, as leaves on the CPU."""
    return {
        n: None if t is None else t.detach().cpu().double().requires_grad_(t.requires_grad)
        for n, t in inputs.items()
    }


def in_format_of_output(cotangent: Tensor, output: Tensor) -> Tensor:
    """As the layers behind an op hand its gradient on."""
    return cotangent.contiguous(memory_format=memory_format(output))


def gradients(case: Case, inputs, cotangents, layout=in_format_of_output):
    outputs = case.run(inputs)
    wanted = [t for t in inputs.values() if t is not None]
    laid_out = [layout(c.to(o), o) for c, o in zip(cotangents, outputs)]
    found = torch.autograd.grad(outputs, wanted, laid_out, allow_unused=True)
    return outputs, dict(zip([n for n, t in inputs.items() if t is not None], found))


def check(on: UnderTest, case: Case, dtype: torch.dtype, layout=in_format_of_output) -> None:
    """layout: that of the outputs' gradients, a function of each and its output."""
    inputs = case.inputs(dtype, on.device)
    exact = exactly(inputs)
    with REFERENCE.chosen():
        shapes = [o.shape for o in case.run(exact)]
        g = generator(1)
        cotangents = [torch.randn(s, generator=g).to(dtype).double() for s in shapes]
        expected, expected_gradients = gradients(case, exact, cotangents)
    with on.chosen():
        actual, actual_gradients = gradients(case, inputs, cotangents, layout)
    for i, (a, e) in enumerate(zip(actual, expected)):
        assert_close(a, e, on.float32_bound if dtype == torch.float32 else TOLERANCE[dtype], f"output {i}")
    for name, e in expected_gradients.items():
        assert actual_gradients[name].dtype == inputs[name].dtype
        assert_close(actual_gradients[name], e, TOLERANCE[dtype], f"gradient of {name}")
