"""The MotionGRU step in plain PyTorch, written from the paper's equations: the peer of our cell.

    u = s(W_u * [x, F]),  r = s(W_r * [x, F]),  z = tanh(W_z * [x, r.F])
    F' = u.z + (1 - u).F,   D' = D + alpha (F - D),   F_t = F' + D',   out = warp(x, F_t)

It concatenates, has a convolution per gate, and lays the samples of four corners out for a convolution of stride k.
Such modules launch about 100 kernels forward. Parameter names are those of `motionrnn_ext.MotionGRUCell`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainWarp(nn.Module):
    """`(x, offset) -> out`, x (B, C, H, W) and offset (B, 2K, H, W), rows then columns."""

    def __init__(self, channels: int, k: int = 3) -> None:
        super().__init__()
        self.k = k
        self.conv = nn.Conv2d(channels, channels, k, stride=k, bias=False)
        self.warp_gate = nn.Conv2d(channels, k * k, 3, padding=1)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        mask = torch.sigmoid(self.warp_gate(x))  # (B, K, H, W)
        padded = F.pad(x, (1, 1, 1, 1))  # places off the map are clamped into this ring of zeros
        place = (self._grid(offset) + offset).permute(0, 2, 3, 1).contiguous()  # (B, H, W, 2K)
        near = place.detach().floor()
        near, far, place = (_inside(t, padded) for t in (near, near + 1, place))
        samples: Tensor | int = 0
        for row in (near, far):
            for col in (near, far):
                corner = torch.cat([row.chunk(2, dim=-1)[0], col.chunk(2, dim=-1)[1]], dim=-1)
                down, right = (corner - place).chunk(2, dim=-1)
                down = 1 + down if row is near else 1 - down
                right = 1 + right if col is near else 1 - right
                samples = samples + (down * right).unsqueeze(1) * _pick(padded, corner)  # (B, C, H, W, K)
        gate = mask.permute(0, 2, 3, 1).unsqueeze(1)
        masked = samples * torch.cat([gate] * x.shape[1], dim=1)
        return self.conv(self._spread(masked).to(x.dtype))

    def _grid(self, like: Tensor) -> Tensor:
        """Return the places of each pixel's taps in the padded map: (1, 2K, H, W), rows then columns."""
        height, width = like.shape[-2:]
        k, reach = self.k, (self.k - 1) // 2
        options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        taps = torch.arange(-reach, reach + 1, **options)
        tap_rows, tap_cols = torch.meshgrid(taps, taps, indexing="ij")
        rows, cols = torch.meshgrid(
            torch.arange(1, height + 1, **options), torch.arange(1, width + 1, **options), indexing="ij"
        )
        rows = rows.expand(k * k, height, width) + tap_rows.reshape(-1, 1, 1)
        cols = cols.expand(k * k, height, width) + tap_cols.reshape(-1, 1, 1)
        return torch.cat([rows, cols]).unsqueeze(0)

    def _spread(self, samples: Tensor) -> Tensor:
        """Lay (B, C, H, W, K) out as (B, C, kH, kW), each pixel's taps side by side, for a convolution of stride k."""
        batch, channels, height, width, _ = samples.shape
        rows = [part.reshape(batch, channels, height, -1) for part in samples.split(self.k, dim=-1)]
        return torch.cat(rows, dim=-1).view(batch, channels, height * self.k, width * self.k)


def _inside(place: Tensor, padded: Tensor) -> Tensor:
    """Clamp places (B, H, W, 2K), rows then columns, to the padded map."""
    rows, cols = place.chunk(2, dim=-1)
    return torch.cat([rows.clamp(0, padded.shape[2] - 1), cols.clamp(0, padded.shape[3] - 1)], dim=-1)


def _pick(padded: Tensor, corner: Tensor) -> Tensor:
    """Return padded (B, C, H + 2, W + 2) at the integer places (B, H, W, 2K), as (B, C, H, W, K)."""
    channels, width = padded.shape[1], padded.shape[3]
    row, col = corner.long().chunk(2, dim=-1)
    index = (row * width + col).unsqueeze(1).expand(-1, channels, -1, -1, -1).contiguous()
    return padded.flatten(2).gather(2, index.flatten(2)).view(index.shape)


class PlainCell(nn.Module):
    """`(x, offset, trend) -> (out, offset, trend)`, the motion state in its own dtype throughout."""

    def __init__(self, channels: int, k: int = 3, alpha: float = 0.5) -> None:
        super().__init__()
        motion = 2 * k * k
        self.alpha = alpha
        self.update = nn.Conv2d(channels + motion, motion, 3, padding=1)
        self.reset = nn.Conv2d(channels + motion, motion, 3, padding=1)
        self.output = nn.Conv2d(channels + motion, motion, 3, padding=1)
        self.warp = PlainWarp(channels, k)

    def forward(self, x: Tensor, offset: Tensor, trend: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stacked = torch.cat([x, offset.to(x.dtype)], dim=1)
        update = torch.sigmoid(self.update(stacked).to(offset.dtype))
        reset = torch.sigmoid(self.reset(stacked).to(offset.dtype))
        seen = torch.cat([x, (reset * offset).to(x.dtype)], dim=1)
        candidate = torch.tanh(self.output(seen).to(offset.dtype))
        transient = update * candidate + (1 - update) * offset
        trend = trend + self.alpha * (offset - trend)
        offset = transient + trend
        return self.warp(x, offset), offset, trend
