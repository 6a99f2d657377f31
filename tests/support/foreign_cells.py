"""Recurrent cells and networks built as those of other programs are, in a few lines of plain PyTorch."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn


class Cell(nn.Module):
    """The convolutions of a cell: each gives a multiple of C channels from x or from a multiple of C."""

    outs: ClassVar[dict[str, tuple[int, int]]] = {}

    def __init__(
        self, inputs: int, hidden: int, k: int = 5, norm: int | None = None, stride: int = 1
    ) -> None:
        super().__init__()
        self.num_hidden, self._forget_bias = hidden, 1.0
        for name, (of, to) in self.outs.items():
            conv = nn.Conv2d(hidden * of or inputs, hidden * to, k, stride, k // 2, bias=False)
            norms = [] if norm is None else [nn.LayerNorm([hidden * to, norm, norm])]
            setattr(self, name, nn.Sequential(conv, *norms))
        self.conv_last = nn.Conv2d(2 * hidden, hidden, 1, bias=False)


class ConvLSTMCell(Cell):
    """OpenSTL's, with the two convolutions that its forward never calls."""

    outs: ClassVar = {"conv_x": (0, 4), "conv_h": (1, 4), "conv_o": (2, 1)}

    def forward(self, x_t, h_t, c_t):
        i, f, g, o = (self.conv_x(x_t) + self.conv_h(h_t)).chunk(4, dim=1)
        c = torch.sigmoid(f) * c_t + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class STLSTMCell(Cell):
    """That of predrnn-pytorch and of OpenSTL."""

    outs: ClassVar = {"conv_x": (0, 7), "conv_h": (1, 4), "conv_m": (1, 3), "conv_o": (2, 1)}

    def forward(self, x_t, h_t, c_t, m_t):
        return self.step(x_t, h_t, c_t, m_t)[:3]

    def step(self, x, h, c, m):
        of_x, of_h, of_m = (conv(t).split(self.num_hidden, 1) for conv, t in
                            ((self.conv_x, x), (self.conv_h, h), (self.conv_m, m)))  # fmt: skip
        added_c = torch.sigmoid(of_x[0] + of_h[0]) * torch.tanh(of_x[2] + of_h[2])
        added_m = torch.sigmoid(of_x[3] + of_m[0]) * torch.tanh(of_x[5] + of_m[2])
        c = torch.sigmoid(of_x[1] + of_h[1] + self._forget_bias) * c + added_c
        m = torch.sigmoid(of_x[4] + of_m[1] + self._forget_bias) * m + added_m
        both = torch.cat([c, m], 1)
        gate = torch.sigmoid(of_x[6] + of_h[3] + self.conv_o(both))
        return gate * torch.tanh(self.conv_last(both)), c, m, added_c, added_m, gate


class DecoupledCell(STLSTMCell):
    """That of PredRNN v2, which returns its decoupling terms."""

    def forward(self, x_t, h_t, c_t, m_t):
        return self.step(x_t, h_t, c_t, m_t)[:5]


class HighwayCell(STLSTMCell):
    """That of MotionRNN's program."""

    def forward(self, x_t, h_t, c_t, m_t, motion_highway):
        h, c, m, *_, gate = self.step(x_t, h_t, c_t, m_t)
        h = h + (1 - gate) * motion_highway
        return h, c, m, h


class Network(nn.Module):
    """A network as those programs have it: (frames (B, T, C, H, W)) -> the prediction of each next frame."""

    def __init__(self, cell, hidden: int = 4, layers: int = 2, **options) -> None:
        super().__init__()
        self.hidden = hidden
        sizes = [3, *[hidden] * layers]
        self.cell_list = nn.ModuleList(cell(i, hidden, **options) for i in sizes[:-1])
        self.conv_first = nn.Conv2d(3, hidden, 5, padding=2, bias=False)
        self.conv_last = nn.Conv2d(hidden, 3, 5, padding=2)
        self.between = lambda t: None  # called before every step

    def forward(self, frames):
        zeros = frames.new_zeros(frames.shape[0], self.hidden, *frames.shape[3:])
        h, c, m = [zeros] * len(self.cell_list), [zeros] * len(self.cell_list), zeros
        predicted = []
        for t in range(frames.shape[1]):
            self.between(t)
            x = frames[:, t]
            y = self.conv_first(x)
            for i, cell in enumerate(self.cell_list):
                states = {3: (h[i], c[i]), 4: (h[i], c[i], m), 5: (h[i], c[i], m, y)}[number_of_inputs(cell)]
                h[i], c[i], *rest = cell(x, *states)
                m, y = (*rest, y)[:2] if rest and len(rest) < 3 else (rest[0] if rest else m, y)
                x = h[i]
            predicted.append(self.conv_last(x))
        return torch.stack(predicted, 1)


def number_of_inputs(cell: nn.Module) -> int:
    kind = type(vars(cell).get("official", cell))
    return 3 if issubclass(kind, ConvLSTMCell) else 5 if issubclass(kind, HighwayCell) else 4
