"""What the MotionGRUs cost in a training step of a whole model: forward and backward of MotionRNN-PredRNN.

Their kernels, the same model on the reference, and the same model without them: the difference to the last is their
share. The model's motion has the small shape of `cases`: its frames are 2 * patch_size times as large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gpu_timing as timing
import torch
from cases import MapShape
from gpu_cases import BOTH, LAYOUTS, Case, largest_difference

from motionrnn_ext import MotionRNN, backend

PATCH, LAYERS, FRAMES = 4, 4, 6
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-1}  # of the predictions, rounded at every step and layer
SUBJECTS = (("ours", "NCHW"), ("ours", "channels_last"), ("reference", "NCHW"), ("ours, without MotionGRU", "NCHW"),
            ("ours, without MotionGRU", "channels_last"))  # fmt: skip


@dataclass(frozen=True)
class TrainingStep:
    motion: MapShape
    dtype: str

    def __str__(self) -> str:
        return f"MotionRNN training step {self.motion} {self.dtype}"

    def identity(self) -> dict[str, Any]:
        return Case("MotionRNN", self.motion, self.dtype, BOTH).identity()

    def rows(self, device: str, seconds: float) -> list[dict[str, Any]]:
        size = self.motion.size * 2 * PATCH
        frames = torch.rand((self.motion.batch, FRAMES, 1, size, size), device=device).to(
            getattr(torch, self.dtype)
        )
        rows, subjects = [], []
        for name, layout in SUBJECTS:
            row = {**self.identity(), "sets": 1, "cold": True, "implementation": name, "layout": layout}
            rows.append(row)
            subjects.append(None)
            try:
                subjects[-1] = self._prepared(name, layout, frames, row)
            except Exception as error:
                row["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        timing.interleave([s for s in subjects if s is not None], seconds)
        for row, subject in zip(rows, subjects):
            row.update(subject.result() if subject is not None else {})
        return rows

    def _prepared(self, name: str, layout: str, frames: torch.Tensor, row: dict[str, Any]) -> timing.Subject:
        model = self._model(name).to(frames.device, frames.dtype).to(memory_format=LAYOUTS[layout])
        run = model if not name.startswith("reference") else _on_reference(model)
        parameters = list(model.parameters())
        grad = torch.randn_like(frames[:, 1:])

        def step() -> object:
            predictions = run(frames, FRAMES // 2)
            return predictions, torch.autograd.grad(predictions, parameters, grad)

        predictions, _ = step()
        row["difference"] = self._difference(name, model, frames, predictions)
        if not row["difference"] <= TOLERANCE[self.dtype]:
            raise ArithmeticError(f"differs from float64 by {row['difference']:.2g}: not timed")
        row["kept_bytes"] = timing.kept_bytes(lambda: run(frames, FRAMES // 2), [frames, *parameters])
        row["peak_bytes"] = timing.peak_bytes(step)
        subject = timing.Subject([step])
        subject.prepare()
        if subject.graph is not None:
            row["nodes"] = {k: n / subject.in_graph for k, n in timing.nodes(subject.graph).items()}
        return subject

    def _model(self, name: str) -> MotionRNN:
        torch.manual_seed(0)
        hidden = [4 * self.motion.channels] * LAYERS
        return MotionRNN("predrnn", 1, hidden, PATCH, motion_gru="without MotionGRU" not in name)

    def _difference(
        self, name: str, model: MotionRNN, frames: torch.Tensor, predictions: torch.Tensor
    ) -> float:
        exact = self._model(name).to(frames.device, torch.float64)
        exact.load_state_dict(model.state_dict())
        with torch.no_grad(), backend("reference"):
            expected = exact(frames.double(), FRAMES // 2)
        return largest_difference([predictions], [expected])


def _on_reference(model: MotionRNN):
    def run(*arguments: Any) -> torch.Tensor:
        with backend("reference"):
            return model(*arguments)

    return run
