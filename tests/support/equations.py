"""Comparison of a layer with its equations written out: float64, values and gradients."""

from __future__ import annotations

import torch
from golden import relative_error
from under_test import ALL

BACKENDS = [on.name for on in ALL if torch.float64 in on.dtypes]
TOLERANCE = 1e-11  # relative to max|reference|; measured 2e-15


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module in float64 with every parameter drawn, so that no zero initial value hides a term."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def drawn(*shape: int, seed: int = 1, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()


def assert_same(found, expected, wrt) -> None:
    """Equal values, and equal gradients of a random projection, within TOLERANCE."""
    cotangents = [drawn(*t.shape, seed=7 + i).detach() for i, t in enumerate(expected)]
    gradients = [
        torch.autograd.grad(sum((t * c).sum() for t, c in zip(outputs, cotangents)), wrt, retain_graph=True)
        for outputs in (found, expected)
    ]
    for ours, theirs in zip((*found, *gradients[0]), (*expected, *gradients[1])):
        assert relative_error(ours, theirs.detach()) <= TOLERANCE
