"""The steps of ConvLSTM and ST-LSTM in plain PyTorch, written from the papers' equations: the peers of our cells.

Parameter names are those of `motionrnn_ext.layers.ConvLSTMCell` and `SpatioTemporalLSTMCell`, which have the equations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KERNEL = 5


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, KERNEL, padding=KERNEL // 2, bias=False))


class PlainConvLSTM(nn.Module):
    """`(x, hidden, cell, highway=None) -> (hidden, cell)`, maps (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_x, self.conv_h = (_convolution(channels, 4 * channels) for _ in range(2))

    def forward(
        self, x: Tensor, hidden: Tensor, cell: Tensor, highway: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        i, f, g, o = (self.conv_x(x) + self.conv_h(hidden)).chunk(4, dim=1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        return _output(o, cell, highway), cell


class PlainSpatioTemporalLSTM(nn.Module):
    """`(x, hidden, cell, memory, highway=None) -> (hidden, cell, memory)`, maps (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_x, self.conv_h, self.conv_m = (_convolution(channels, n * channels) for n in (7, 4, 3))
        self.conv_o = _convolution(2 * channels, channels)
        self.conv_last = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(
        self, x: Tensor, hidden: Tensor, cell: Tensor, memory: Tensor, highway: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        i_x, f_x, g_x, i_xm, f_xm, g_xm, o_x = self.conv_x(x).chunk(7, dim=1)
        i_h, f_h, g_h, o_h = self.conv_h(hidden).chunk(4, dim=1)
        i_m, f_m, g_m = self.conv_m(memory).chunk(3, dim=1)
        cell = torch.sigmoid(f_x + f_h + 1) * cell + torch.sigmoid(i_x + i_h) * torch.tanh(g_x + g_h)
        memory = torch.sigmoid(f_xm + f_m + 1) * memory + torch.sigmoid(i_xm + i_m) * torch.tanh(g_xm + g_m)
        both = torch.cat([cell, memory], dim=1)
        return _output(o_x + o_h + self.conv_o(both), self.conv_last(both), highway), cell, memory


def _output(logits: Tensor, content: Tensor, highway: Tensor | None) -> Tensor:
    gate = torch.sigmoid(logits)
    hidden = gate * torch.tanh(content)
    return hidden if highway is None else hidden + (1 - gate) * highway
