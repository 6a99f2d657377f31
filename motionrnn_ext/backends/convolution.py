"""A predictor's convolution as a rollout calls it: one weight, laid out once, for many steps and both gradients.

On the CPU kernels, 5x5 convolutions in float32 run by Winograd's algorithm F(2x2, 5x5), which takes 36 products for a
tile of 2x2 results in place of 100. On one core of an AMD EPYC with AVX-512, for 64 to 448 channels of 16x16 and 32x32,
it is 1.8 to 2.7 times as fast as PyTorch's (oneDNN) forward and for the gradient of x, and 1.6 to 2.3 times for that of
the weight. Packing a weight, once in each direction, takes as long as about 1 to 2 calls at batch 1 on 16x16; a rollout
of three steps or more gains. Everything else runs by PyTorch's convolution. The tensors are plain: nothing here is
recorded by autograd.

The algorithm rounds differently: for 64 to 448 channels of normal data, the largest error against float64 is 1.1e-6 of
the largest value, where PyTorch's is 5e-7; 1.9e-6 for the gradient of x. A nan or inf may spread to the 2x2 results of
every tile that reads it (6x6 pixels), also to those that a direct convolution leaves finite; what is finite is right.
Sums are taken in a fixed order, so that results do not depend on the number of threads. MOTIONRNN_EXT_WINOGRAD=0 turns
it off.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from . import native, runs_cpu_kernels

# Fewer channels or smaller maps gain less than 1.2 times, or nothing.
_LEAST_CHANNELS = 32
_LEAST_SIZE = 8

_VARIABLE = "MOTIONRNN_EXT_WINOGRAD"
# Blanks count as unset, as in every variable of the package.
_named = os.environ.get(_VARIABLE, "").strip()


def is_winograd_wanted() -> bool:
    """Return whether MOTIONRNN_EXT_WINOGRAD leaves Winograd's algorithm on.

    Raises:
        ValueError: the variable is neither 0 nor 1, nor blank.
    """
    if _named not in ("", "0", "1"):
        raise ValueError(f"{_VARIABLE} is '{_named}'; it should be 0 or 1")
    return _named != "0"


def fits_winograd(weight: Tensor, like: Tensor) -> bool:
    """Return whether the convolution of maps like `like` (B, C, H, W) by `weight`, padded by 2, is faster by
    Winograd's algorithm, and may run by it."""
    if weight.shape[2:] != (5, 5) or {weight.dtype, like.dtype} != {torch.float32}:
        return False
    if min(weight.shape[:2]) < _LEAST_CHANNELS or min(like.shape[2:]) < _LEAST_SIZE:
        return False
    return is_winograd_wanted() and runs_cpu_kernels(like)


class Prepared:
    """A convolution of stride 1 with one weight. The way is chosen at the first call, for maps of that size."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int | Sequence[int]) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        dims = weight.dim() - 2
        self.padding = [padding] * dims if isinstance(padding, int) else list(padding)
        self._is_winograd: bool | None = None
        self._packed: dict[bool, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (B, C, H, W), with the bias."""
        if self.is_winograd(x):
            return native.call("winograd_conv", x, self._pack(False), self.weight.shape[0], self.bias)
        return torch.ops.aten.convolution(x, self.weight, self.bias, *self._geometry())

    def data_gradient(self, grad: Tensor, x_like: Tensor) -> Tensor:
        """Return the gradient of x, which has the shape of x_like, from the gradient of the result."""
        if self.is_winograd(x_like):
            return native.call("winograd_conv", grad, self._pack(True), self.weight.shape[1], None)
        return self._gradients(grad, x_like, [True, False, False])[0]

    def weight_gradient(self, grads: Sequence[Tensor], xs: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of weight and bias, summed over the steps: pairs of a result's gradient and its x.

        PyTorch's convolution joins the steps along the batch, which copies them.
        """
        if self.is_winograd(xs[0]):
            to_bias = None if self.bias is None else sum_of_pixels(grads)
            return native.call("winograd_weight_gradient", list(grads), list(xs)), to_bias
        grad, x = (ts[0] if len(ts) == 1 else torch.cat(list(ts)) for ts in (grads, xs))
        _, to_weight, to_bias = self._gradients(grad, x, [False, True, self.bias is not None])
        return to_weight, to_bias

    def is_winograd(self, like: Tensor) -> bool:
        """Return whether the convolution runs by Winograd's algorithm."""
        if self._is_winograd is None:
            self._is_winograd = self.padding == [2, 2] and fits_winograd(self.weight, like)
        return self._is_winograd

    def _pack(self, transposed: bool) -> Tensor:
        if transposed not in self._packed:
            self._packed[transposed] = native.call("winograd_pack", self.weight, transposed)
        return self._packed[transposed]

    def _geometry(self) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
        """Return stride, padding, dilation, transposed, output padding and groups."""
        ones = [1] * len(self.padding)
        return ones, self.padding, ones, False, [0] * len(self.padding), 1

    def _gradients(self, grad: Tensor, x: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor | None]:
        sizes = None if self.bias is None else list(self.bias.shape)
        made = torch.ops.aten.convolution_backward(grad, x, self.weight, sizes, *self._geometry(), wanted)
        return made[0], made[1], made[2]


def prepare(weight: Tensor, bias: Tensor | None, padding: int | Sequence[int]) -> Prepared:
    """Return the convolution by a weight (C_out, C, k, k) and a bias (C_out) or None, for many calls.

    A weight that changes needs a new one. Weights are packed at the first call that needs them, forward and for the
    gradient of x each.
    """
    return Prepared(weight, bias, padding)


def sum_of_pixels(grads: Sequence[Tensor]) -> Tensor:
    """Return the sum of maps (B, C, H, W) over all but the channels, over all steps."""
    sums = [grad.sum((0, 2, 3)) for grad in grads]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
