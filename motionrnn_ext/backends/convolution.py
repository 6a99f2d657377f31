"""A convolution as the steps of a rollout call it: by one weight, forward and for both gradients.

On the CPU kernels, convolutions of 3x3 and 5x5 taps run by Winograd's algorithm, in float32, and in bfloat16 where the
CPU has no matrix unit (AMX), with arithmetic in float32. Everything else runs by PyTorch's convolution.

    3x3             F(4x4, 3x3), which takes 36 products for a tile of 4x4 results in place of 144
    5x5             F(2x2, 5x5), 36 products for 2x2 in place of 100
    5x5, bfloat16   F(4x4, 5x5), 64 products for 4x4 in place of 400

Times as fast as PyTorch's (oneDNN) on one core of an AMD EPYC: 3x3 with AVX2, for 32 to 336 channels of 16x16 and
32x32, in float32 2.1 to 3.2 forward and for the gradient of x, 1.9 to 3.1 for that of the weight; 5x5 with AVX-512, for
64 to 256 channels of the same maps, in float32 2.0 to 2.8 and 1.6 to 2.3, in bfloat16 1.5 to 2.4 and 1.8 to 2.6.
Packing a weight, once in each direction, takes as long as about 1 to 2 calls at batch 1 on 16x16; a rollout of three
steps or more gains. Packed, a weight takes 36 floats for 9 or 25 taps, and 64 for 25 taps and maps in bfloat16.

The algorithm rounds differently. In float32, for 64 to 448 channels of normal data, the largest error against float64
is 1.1e-6 of the largest value (3x3: 1.7e-6), where PyTorch's is 5e-7; 1.9e-6 for the gradient of x. In bfloat16 it is
1e-5 before the results are rounded, which adds up to 4e-3, in PyTorch's as well. A nan or inf may spread to the results
of every tile that reads it (6x6 pixels, 8x8 for 5x5 in bfloat16), also to those that a direct convolution leaves
finite; what is finite is right. Sums are taken in a fixed order, so that results do not depend on the number of
threads. MOTIONRNN_EXT_WINOGRAD=0 turns it off.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import native, runs_cpu_kernels
from .torch_private import has_matrix_unit, is_batched_gradient, transforms

# Fewer channels or smaller maps gain less than 1.2 times, or nothing. For 3x3 taps, a map of 8x8 has four tiles, which
# do not fill a vector.
_LEAST_CHANNELS = 32
_LEAST_SIZE = {3: 16, 5: 8}
# The kernel sizes that run by Winograd's algorithm.
KERNEL_SIZES = tuple(_LEAST_SIZE)

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
    """Return whether a convolution runs faster by Winograd's algorithm, and may run by it.

    It is of maps like `like` (B, C, H, W) by `weight`, padded so that the maps keep their size.
    """
    height, width = weight.shape[2:]
    if height != width or height not in KERNEL_SIZES or weight.dtype != like.dtype:
        return False
    if not (like.dtype == torch.float32 or (like.dtype == torch.bfloat16 and not has_matrix_unit())):
        return False
    if min(weight.shape[:2]) < _LEAST_CHANNELS or min(like.shape[2:]) < _LEAST_SIZE[height]:
        return False
    return is_winograd_wanted() and runs_cpu_kernels(like)


def gains(shape: Sequence[int], x: Tensor, dtype: torch.dtype) -> bool:
    """Return whether convolutions of maps like x (B, C, h, w) by weights of this shape gain from being shared.

    On a CPU those gain that run by Winograd's algorithm: a forward of a whole program takes 0.5 to 0.8 of its time. By
    PyTorch's convolution it takes 0.9 to 1.3 of it (OpenSTL's ConvLSTM, PredRNN and its v2 with 32 channels; one
    thread, CPU time), so that others are called as such.
    """
    weight = torch.empty(tuple(shape), dtype=dtype, device="meta")
    return fits_winograd(weight, x.new_empty((1, 1, *x.shape[2:]), dtype=dtype))


class Geometry(NamedTuple):
    """The arguments of `aten.convolution` behind weight and bias."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int] = (1, 1)
    transposed: bool = False
    output_padding: Sequence[int] = (0, 0)
    groups: int = 1


def same(weight: Tensor) -> Geometry:
    """Return the geometry of the convolution by that weight that keeps the size of maps."""
    return Geometry((1, 1), (weight.shape[-1] // 2, weight.shape[-1] // 2))


class Convolution:
    """A convolution by one weight, for many calls, which give the weight. Autograd records nothing of them, but for
    gradients under create_graph.

    The way is chosen at the first call, for maps of its size. Weights are packed at the first call that needs them.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self._is_winograd: bool | None = None
        self._packed: dict[bool, Tensor] = {}

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the convolution of x (B, C, H, W), with the bias."""
        if self.is_winograd(x, weight):
            return self._winograd(x, weight, bias, transposed=False)
        return torch.ops.aten.convolution(x, weight, bias, *self.geometry)

    def data_gradient(self, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of x, from the gradient of the result."""
        if self.is_winograd(x, weight) and not _is_recorded():
            return self._winograd(grad, weight, None, transposed=True)
        return self._gradients(grad, x, weight, (True, False, False))[0]

    def weight_gradients(
        self, grads: list[Tensor], xs: list[Tensor], weight: Tensor, needs: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of weight and bias, summed over steps: pairs of a result's gradient and its x.

        None stands for a gradient that is not needed. PyTorch's convolution joins the steps along the batch, which
        copies them.
        """
        is_batched = any(map(is_batched_gradient, (*grads, *xs)))
        if self.is_winograd(xs[0], weight) and not is_batched and not _is_recorded():
            to_weight = (
                native.run("winograd_weight_gradient", grads, xs, weight.shape[2]) if needs[0] else None
            )
            return to_weight, sum_of_pixels(grads) if needs[1] else None
        grad, x = (maps[0] if len(maps) == 1 else torch.cat(maps) for maps in (grads, xs))
        _, to_weight, to_bias = self._gradients(grad, x, weight, (False, *needs))
        return to_weight, to_bias

    def is_winograd(self, like: Tensor, weight: Tensor) -> bool:
        """Return whether the convolution runs by Winograd's algorithm."""
        if self._is_winograd is None:
            self._is_winograd = self.geometry == same(weight) and fits_winograd(weight, like)
        return self._is_winograd

    def read(self, weight: Tensor) -> Tensor:
        """Return the weight that a given weight stands for, which is that itself."""
        return weight

    def pack(self, weight: Tensor, *, transposed: bool) -> None:
        """Pack a weight for the convolution, or transposed for the gradient of x."""
        self._packed[transposed] = native.run("winograd_pack", weight.detach(), transposed)

    def free(self) -> None:
        """Free the packed weights; later calls pack them again."""
        self._packed.clear()

    def free_forward(self) -> None:
        """Free the packed weight that `run` reads; a later call packs it again."""
        self._packed.pop(False, None)

    def _winograd(self, x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool) -> Tensor:
        if transposed not in self._packed:
            self.pack(self.read(weight), transposed=transposed)
        outs = weight.shape[1] if transposed else weight.shape[0]
        bias = None if bias is None else bias.float()
        return native.run("winograd_conv", x, self._packed[transposed], weight.shape[2], outs, bias)

    def _gradients(self, grad: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, bool, bool]) -> Any:
        sizes = [grad.shape[1]] if mask[2] else None
        weight = self.read(weight)
        return torch.ops.aten.convolution_backward(grad, x, weight, sizes, *self.geometry, mask)


def _is_recorded() -> bool:
    """Return whether a backward pass is differentiated or mapped, for which PyTorch's convolution has rules."""
    return torch.is_grad_enabled() or bool(transforms())


def sum_of_pixels(grads: Sequence[Tensor]) -> Tensor:
    """Return the sum of maps (B, C, H, W) over all but the channels, over all steps."""
    sums = [grad.sum((0, 2, 3)) for grad in grads]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
