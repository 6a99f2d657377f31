"""E3D-LSTM, the eidetic 3D LSTM (Wang et al., 2019): maps with a depth axis, memory recalled by attention.

W is the window, the number of last frames in depth; maps are (B, C, W, h, w).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from ... import ops
from ..arguments import is_whole, shown
from ..states import detached, exportable
from .base import RecurrentCell


@exportable
class E3DLSTMState(NamedTuple):
    """Temporal state of one layer."""

    hidden: Tensor  # H (B, C, W, h, w)
    cell: Tensor  # C (B, C, W, h, w)
    history: (
        Tensor  # every C so far, or the last of them, as rows of C numbers (B, n W h w, C), `cell` the last
    )
    inputs: Tensor  # the last W-1 slices of x (B, C_in, W-1, h, w)

    def detach(self) -> E3DLSTMState:
        """Return the state cut from the graph, for truncated backpropagation."""
        return detached(self)


class DepthConv(nn.Module):
    """A convolution of W x k x k without bias on (B, C, W, h, w) to the same size, with zeros behind the last slice.

    The slices of the output are 2-D convolutions over as much depth as there is: for W = 2 three quarters of
    the multiply-adds of a padded 3-D convolution, 141 ms instead of 199 forward and backward (CPU, 4x64x2x16x16
    to 448 channels, k = 5, 2 threads). With `repeat` the first slice stands for all (OpenSTL's form: depth
    is not padded but the result repeated).
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

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv3d

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "kernel_size" not in state:  # pickled by an older version
            self.out_channels, self.in_channels, *kernel = self.weight.shape
            self.kernel_size = cast("tuple[int, int, int]", tuple(kernel))

    def extra_repr(self) -> str:
        sizes = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        return f"{sizes}, repeat={self.repeat}"

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight  # read once, as a parametrised one is computed by it
        slices = [
            F.conv2d(
                x[:, :, d:].flatten(1, 2),
                weight[:, :, : self.depth - d].flatten(1, 2),
                padding=self.padding,
            )
            for d in range(1 if self.repeat else self.depth)
        ]
        return torch.stack(slices * self.depth if self.repeat else slices, dim=2)


class E3DLSTMCell(RecurrentCell):
    """One layer of E3D-LSTM; x is (B, C_in, W, h, w), and so are H, C, M and the highway with C channels.

        R  = s(r_x + r_h);   Recall = softmax(R K^T) K over all positions of the history C_0 .. C
        C' = LN(C + Recall) + s(i_x + i_h).tanh(g_x + g_h)
        M' = s(f'_x + f_m + 1).tanh(m_m) + s(i'_x + i_m).tanh(g'_x + g_m)
        H' = s(o).tanh(W_1 * [C', M']) + (1 - s(o)).Y,   o = tanh(o_x + o_h + W_c * C' + W_m * M')

    Keys and values of the attention are the same W h w positions of every earlier C, queries those of R; C
    is the width of its head, and nothing is scaled. A step costs more the longer the sequence. `conv_x` gives 7C
    channels (i', f', g', i, r, g, o), `conv_h` 4C (i, r, g, o), `conv_m` 4C (i, f, g, m). The first layer reads the
    last W frames. LN has an affine per position whether or not the convolutions have theirs, so `map_size` is needed.

    compat="openstl": M is returned as it came (its convolution never learns), depth is not padded but the
    first slice repeated, and the attention's rows are C numbers in memory order (channels and positions mixed).

    Args:
        window: W, also the depth of the convolutions.
        history: how many of the last C the attention reads. None, as in the paper, is every one: step n then takes
            time and memory in proportion to n, so that a stream cannot go on for ever.

    Source: Wang et al., 2019, with the parameters of OpenSTL's Eidetic3DLSTMCell: no biases, an affine per
    position, layer norm on W_c and W_m too (the paper's program has biases and an affine per channel).
    """

    has_memory = True
    needs_map_size = True
    history: int | None = None  # also of cells that were pickled before there was one

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
        return self.depth

    def _depth_convolution(self, in_channels: int, out_channels: int, **made: Any) -> nn.Sequential:
        repeat = self.compat == "openstl"
        conv = DepthConv(in_channels, out_channels, self.depth, self.filter_size, repeat, **made)
        return nn.Sequential(conv, *([self._norm(out_channels, **made)] if self.layer_norm else []))

    def _norm(self, channels: int, **made: Any) -> nn.Module:
        assert self.map_size is not None
        return nn.LayerNorm([channels, self.depth, *self.map_size], **made)

    def initial_state(self, hidden: Tensor) -> E3DLSTMState:
        shape = (hidden.shape[0], self.in_channels, self.depth - 1, *hidden.shape[3:])
        return E3DLSTMState(hidden, hidden, self.rows(hidden).contiguous(), hidden.new_zeros(shape))

    def embed(self, x: Tensor, state: E3DLSTMState) -> Tensor:
        return torch.cat([state.inputs, x[:, :, None]], dim=2)

    def forward(
        self, x: Tensor, state: E3DLSTMState, memory: Tensor, highway: Tensor | None = None
    ) -> tuple[Tensor, E3DLSTMState, Tensor]:
        c = self.hidden_channels
        memory_x, cell_x, output_x = self.conv_x(x).split((3 * c, 3 * c, c), dim=1)
        cell_h, output_h = self.conv_h(state.hidden).split((3 * c, c), dim=1)
        input_, recall, candidate = (cell_x + cell_h).split(c, dim=1)
        recalled = self._recall(torch.sigmoid(recall), state.history)
        cell = torch.addcmul(self.norm(state.cell + recalled), torch.sigmoid(input_), torch.tanh(candidate))
        memory_m, content_m = self.conv_m(memory).split((3 * c, c), dim=1)
        content = torch.tanh(content_m.to(memory.dtype))  # float32 under autocast, as the other memories
        after = ops.memory_update(memory_x, memory_m, content)
        logits = torch.tanh(output_x + output_h + self.conv_o_cell(cell) + self.conv_o_memory(after))
        hidden = ops.highway_output(logits, self.conv_last(torch.cat([cell, after], dim=1)), highway)
        carried = memory if self.compat else after
        rows = self.rows(cell)
        history = torch.cat([state.history, rows], dim=1)
        if self.history is not None:
            history = history[:, -self.history * rows.shape[1] :]
        return hidden, E3DLSTMState(hidden, cell, history, x[:, :, 1:]), carried

    def _recall(self, query: Tensor, history: Tensor) -> Tensor:
        # One head, contiguous: else torch takes no fused kernel, is three times slower and keeps all weights (CPU).
        queries, keys = self.rows(query)[:, None].contiguous(), history[:, None]  # (B, 1, [n] W h w, C)
        rows = F.scaled_dot_product_attention(queries, keys, keys, scale=1.0)[:, 0]
        return (rows if self.compat else rows.mT).reshape(query.shape)

    def rows(self, maps: Tensor) -> Tensor:
        """(B, C, W, h, w) -> (B, W h w, C), a row per position; with compat C numbers in memory order."""
        rows = math.prod(maps.shape[2:]), maps.shape[1]
        return maps.reshape(len(maps), *rows) if self.compat else maps.flatten(2).mT
