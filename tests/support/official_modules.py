"""Modules built as the official MotionGRU is, in a few lines of plain PyTorch, and a user's model that holds them."""

from __future__ import annotations

import torch
from torch import nn

from motionrnn_ext.backends import reference


class StandInWarp(nn.Module):
    def __init__(self, channels: int, k: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, k, stride=k, bias=False)
        self.warp_gate = nn.Conv2d(channels, k * k, 3, padding=1)


class StandIn(nn.Module):
    """Attribute names, sizes and results of the official MotionGRU, in a few lines of plain PyTorch."""

    def __init__(self, channels: int, motion: int = 18, k: int = 3) -> None:
        super().__init__()
        self.update, self.reset, self.output = (
            nn.Conv2d(channels + motion, motion, 3, padding=1) for _ in "urz"
        )
        self.warp = StandInWarp(channels, k)

    def forward(self, x, offset, mean):
        u = torch.sigmoid(self.update(torch.cat([x, offset], 1)))
        r = torch.sigmoid(self.reset(torch.cat([x, offset], 1)))
        z = torch.tanh(self.output(torch.cat([x, r * offset], 1)))
        mean = mean + 0.5 * (offset - mean)
        offset = u * z + (1 - u) * offset + mean
        return reference.offset_warp(x, offset, self.warp.warp_gate(x), self.warp.conv.weight), offset, mean


class UserModel(nn.Module):
    """Two MotionGRUs in a list, one of them used under a second name too."""

    def __init__(self, layer=StandIn) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.motion_list = nn.ModuleList(layer(4) for _ in range(2))
        self.again = self.motion_list[0]

    def forward(self, x):
        offset = mean = x.new_zeros(x.shape[0], 18, *x.shape[2:])
        x = self.stem(x)
        for layer in (*self.motion_list, self.again):
            x, offset, mean = layer(x, offset, mean)
        return x + offset.mean()


def official_parts(model: nn.Module) -> list[tuple[object, ...]]:
    """Everything of a model that convert could change: objects by identity, and their flags."""
    modules = [
        (name, id(module), type(module), module.training, dict(module._backward_hooks), list(module._modules))
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    flags = [(name, id(p), p.requires_grad, p._version, id(p.grad)) for name, p in model.named_parameters()]
    return [*modules, *flags]


class Idle(StandIn):
    """A stand-in with hooks that do nothing, as the official layer has."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        for conv in (self.update, self.reset, self.output, self.warp.warp_gate):
            conv.register_backward_hook(self._set_lr)

    @staticmethod
    def _set_lr(module, grad_input, grad_output):
        grad_input = (grad_input[i] * 0.1 for i in range(len(grad_input)))
