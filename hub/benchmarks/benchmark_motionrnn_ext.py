"""The benchmark that `kernels benchmark` runs: the warp of a MotionGRU, and a step of it, beside pure PyTorch."""

import torch
from kernels.benchmark import Benchmark


class MotionGRU(Benchmark):
    seed = 0

    def setup(self):
        torch.manual_seed(0)
        on = {"device": self.device}
        self.x = torch.randn(8, 16, 32, 32, **on)
        self.offset, self.trend = torch.randn(8, 18, 32, 32, **on), torch.randn(8, 18, 32, 32, **on)
        self.mask, self.weight = torch.randn(8, 9, 32, 32, **on), torch.randn(16, 16, 3, 3, **on)
        self.cell = self.kernel.MotionGRUCell(16, zero_init=False).to(self.device)

    def benchmark_offset_warp(self):
        self.out = self.kernel.ops.offset_warp(self.x, self.offset, self.mask, self.weight)

    def verify_offset_warp(self):
        with self.kernel.backend("reference"):
            return self.kernel.ops.offset_warp(self.x, self.offset, self.mask, self.weight)

    @torch.no_grad()
    def benchmark_step(self):
        self.out = self.cell(self.x, self.offset, self.trend)[0]

    @torch.no_grad()
    def verify_step(self):
        with self.kernel.backend("reference"):
            return self.cell(self.x, self.offset, self.trend)[0]
