"""E3D-LSTM, the eidetic 3D LSTM (Wang et al., 2019): maps with a depth axis, memory recalled by attention.

W is the window, the number of last frames in depth; maps are (B, C, W, h, w).

The cell has no autograd node of its own: nodes that joined its convolutions, [X, H], [X, M] and [C', M'], made a
training step 1.00 to 1.05 times as fast (CPU, one thread, 64 channels of 16x16, 8 and 20 frames, batches of 1 and 4),
because about 85% of it is attention and convolutions.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from ... import ops
from ...backends.convolution import Geometry
from ..arguments import is_whole, shown
from ..initial_values import sets
from ..rollout import Rollout, SharedWeights, convolve, current_rollout, dtype_of_convolutions
from ..states import detached, exportable, under_autocast
from .base import RecurrentCell, lays_weights_out


@exportable
class E3DLSTMState(NamedTuple):
    """The temporal state of one layer.

    Attributes:
        hidden: H, (B, C, W, h, w).
        cell: the memory C, (B, C, W, h, w).
        history: the last n memories C (all of them, unless the cell bounds their number), `cell` the last, as rows of C
            numbers, (B, n*W*h*w, C).
        inputs: the last W-1 slices of x, (B, C_in, W-1, h, w).
    """

    hidden: Tensor
    cell: Tensor
    history: Tensor
    inputs: Tensor

    def detach(self) -> E3DLSTMState:
        """Return the state cut from the graph, for truncated backpropagation."""
        return detached(self)


class DepthConv(nn.Module):
    """A W x k x k convolution of maps (B, C, W, h, w) to the same size, without bias.

    Slices behind the last one count as zeros. Every slice of the output is a 2-D convolution over the slices of the
    input that exist. For W = 2 this takes three quarters of the multiply-adds of a padded 3-D convolution: 141 ms
    instead of 199 ms forward and backward (CPU, 4x64x2x16x16 to 448 channels, k = 5, 2 threads). With `repeat` the
    first slice is repeated for all others, as in OpenSTL, which does not pad the depth.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth: int,
        filter_size: int,
        repeat: bool,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kernel = (depth, filter_size, filter_size)
        shape = (out_channels, in_channels, *kernel)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.depth, self.padding, self.repeat = depth, filter_size // 2, repeat
        self.reset_parameters()

    @sets("weight")
    def reset_parameters(self) -> None:
        """Give the weight a new initial value, drawn as `nn.Conv3d` draws it."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "kernel_size" not in state:  # pickled by an older version
            self.out_channels, self.in_channels, *kernel = self.weight.shape
            self.kernel_size = cast("tuple[int, int, int]", tuple(kernel))

    def extra_repr(self) -> str:
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        return f"{sizes}, repeat={self.repeat}"

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x (B, C_in, W, h, w), (B, C_out, W, h, w)."""
        active, depths = current_rollout(), range(1 if self.repeat else self.depth)
        if active is not None and self._is_shared(active, x):
            dtype = dtype_of_convolutions(x)
            shared = active.share((self, dtype), lambda: self._share(depths, x, dtype))
            slices = [weights.convolve(x[:, :, d:].flatten(1, 2)) for d, weights in zip(depths, shared)]
        else:
            # The weight is read once, because every reading computes a parametrised one.
            weight = self.weight
            slices = [
                F.conv2d(x[:, :, d:].flatten(1, 2), self._below(weight, d), padding=self.padding)
                for d in depths
            ]
        return torch.stack(slices * self.depth if self.repeat else slices, dim=2)

    def _is_shared(self, active: Rollout, x: Tensor) -> bool:
        fits = self.weight.dtype == x.dtype or under_autocast(x)
        return fits and active.has(self) and "weight" in self._parameters

    def _below(self, weight: Tensor, d: int) -> Tensor:
        """Return the weight that slice d of the output applies to the slices of the input from d on."""
        return weight[:, :, : self.depth - d].flatten(1, 2)

    def _share(self, depths: range, x: Tensor, dtype: torch.dtype) -> list[SharedWeights]:
        geometry, weight = Geometry((1, 1), (self.padding, self.padding)), self.weight
        return [SharedWeights(geometry, x[:, :, 0], dtype, self._below(weight, d)) for d in depths]


class E3DLSTMCell(RecurrentCell):
    """A layer of E3D-LSTM with the Motion Highway Y.

        R  = s(r_x + r_h);   Recall = softmax(R K^T) K over all positions of the history C_0 .. C
        C' = LN(C + Recall) + s(i_x + i_h).tanh(g_x + g_h)
        M' = s(f'_x + f_m + 1).tanh(m_m) + s(i'_x + i_m).tanh(g'_x + g_m)
        H' = s(o).tanh(W_1 * [C', M']) + (1 - s(o)).Y,   o = tanh(o_x + o_h + W_c * C' + W_m * M')

    x is (B, C_in, W, h, w), and H, C, M and Y are (B, C, W, h, w). The first layer reads the last W frames.

    The keys and the values of the attention are the W*h*w positions of every earlier C, its queries those of R. There
    is one head, C numbers wide, and nothing is scaled. `conv_x` gives 7C channels (i', f', g', i, r, g, o), `conv_h`
    4C (i, r, g, o), `conv_m` 4C (i, f, g, m). LN always has an affine per position, so `map_size` is needed.

    With compat="openstl" M is returned as it came (so its convolution never learns), the first slice is repeated
    instead of padding the depth, and the attention's rows are C numbers in memory order (which mixes channels and
    positions).

    Source: Wang et al., 2019, with the parameters of OpenSTL's Eidetic3DLSTMCell: no biases, an affine per position,
    and layer norm on W_c and W_m too (the paper's program has biases and an affine per channel).

    Args:
        window: W, the number of frames in depth and the depth of the convolutions, at least 2.
        history: the number of last C that the attention reads. None, as in the paper, reads every one: step n then
            takes time and memory in proportion to n, so that a stream cannot go on for ever.

    The other arguments are those of `RecurrentCell`.

    Raises:
        ValueError: window is below 2, or history below 1; otherwise as `RecurrentCell`.
    """

    has_memory = True
    needs_map_size = True
    history: int | None = None  # the default for cells that were pickled by an older version

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        filter_size: int = 5,
        *,
        window: int = 2,
        history: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(in_channels, hidden_channels, filter_size, **made, **options)
        if not is_whole(window) or window < 2:
            raise ValueError(f"window is {shown(window)}; it should be a whole number of at least 2")
        if history is not None and (not is_whole(history) or history < 1):
            raise ValueError(
                f"history is {shown(history)}; it should be a whole number of at least 1, or None"
            )
        self.history = None if history is None else int(history)
        in_channels, c, self.depth = self.in_channels, self.hidden_channels, int(window)
        self.conv_x = self._depth_convolution(in_channels, 7 * c, **made)
        self.conv_h = self._depth_convolution(c, 4 * c, **made)
        self.conv_m = self._depth_convolution(c, 4 * c, **made)
        self.conv_o_cell = self._depth_convolution(c, c, **made)
        self.conv_o_memory = self._depth_convolution(c, c, **made)
        self.conv_last = nn.Conv3d(2 * c, c, 1, bias=False, **made)
        self.norm = self._norm(c, **made)

    @property
    def window(self) -> int:
        """Return W, the number of frames in depth."""
        return self.depth

    def _depth_convolution(self, in_channels: int, out_channels: int, **made: Any) -> nn.Sequential:
        repeat = self.compat == "openstl"
        conv = DepthConv(in_channels, out_channels, self.depth, self.filter_size, repeat, **made)
        return nn.Sequential(conv, *([self._norm(out_channels, **made)] if self.layer_norm else []))

    def _norm(self, channels: int, **made: Any) -> nn.Module:
        assert self.map_size is not None
        return nn.LayerNorm([channels, self.depth, *self.map_size], **made)

    def initial_state(self, hidden: Tensor) -> E3DLSTMState:
        """Return the state at the start of a sequence: `hidden` (B, C, W, h, w) as H, a copy as C, zeros as inputs."""
        shape = (hidden.shape[0], self.in_channels, self.depth - 1, *hidden.shape[3:])
        # Clones, because torch.export would take what it is given twice for one input.
        rows = self.rows(hidden).clone(memory_format=torch.contiguous_format)
        return E3DLSTMState(hidden, hidden.clone(), rows, hidden.new_zeros(shape))

    def embed(self, x: Tensor, state: E3DLSTMState) -> Tensor:
        """Return the window of the last W frames, (B, C_in, W, h, w), that ends with the frame x (B, C_in, h, w)."""
        return torch.cat([state.inputs, x[:, :, None]], dim=2)

    @lays_weights_out
    def forward(
        self,
        x: Tensor,
        state: E3DLSTMState | None = None,
        memory: Tensor | None = None,
        highway: Tensor | None = None,
    ) -> tuple[Tensor, E3DLSTMState, Tensor]:
        """Take one time step, see `RecurrentCell`; `memory` is M, (B, C, W, h, w)."""
        state, memory = self.started(x, state, memory, E3DLSTMState)
        c = self.hidden_channels
        memory_x, cell_x, output_x = convolve(self.conv_x, x).split((3 * c, 3 * c, c), dim=1)
        cell_h, output_h = convolve(self.conv_h, state.hidden).split((3 * c, c), dim=1)
        input_, recall, candidate = (cell_x + cell_h).split(c, dim=1)
        recalled = self._recall(torch.sigmoid(recall), state.history)
        cell = torch.addcmul(self.norm(state.cell + recalled), torch.sigmoid(input_), torch.tanh(candidate))
        memory_m, content_m = convolve(self.conv_m, memory).split((3 * c, c), dim=1)
        # Memories are float32 under autocast.
        content = torch.tanh(content_m.to(memory.dtype))
        after = ops.memory_update(memory_x, memory_m, content)
        logits = torch.tanh(
            output_x + output_h + convolve(self.conv_o_cell, cell) + convolve(self.conv_o_memory, after)
        )
        hidden = ops.highway_output(logits, self.conv_last(torch.cat([cell, after], dim=1)), highway)
        carried = memory if self.compat else after
        rows = self.rows(cell)
        history = torch.cat([state.history, rows], dim=1)
        if self.history is not None:
            history = history[:, -self.history * rows.shape[1] :]
        return hidden, E3DLSTMState(hidden, cell, history, x[:, :, 1:]), carried

    def _recall(self, query: Tensor, history: Tensor) -> Tensor:
        """Return the memories that the query recalls from the history, in the query's shape."""
        # One contiguous head: without it, on the CPU, torch takes no fused kernel, is three times slower and keeps all
        # attention weights for backward.
        queries, keys = self.rows(query)[:, None].contiguous(), history[:, None]  # (B, 1, [n] W h w, C)
        rows = F.scaled_dot_product_attention(queries, keys, keys, scale=1.0)[:, 0]
        return (rows if self.compat else rows.mT).reshape(query.shape)

    def rows(self, maps: Tensor) -> Tensor:
        """Return maps (B, C, W, h, w) as rows (B, W*h*w, C), one per position, or with compat in memory order."""
        rows = math.prod(maps.shape[2:]), maps.shape[1]
        return maps.reshape(len(maps), *rows) if self.compat else maps.flatten(2).mT
