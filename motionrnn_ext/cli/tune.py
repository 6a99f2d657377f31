"""The command `motionrnn tune`: it runs models of given sizes, so that the blocks of Triton's kernels are measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from .. import backends
from ..backends import triton
from ..models import MotionRNN

if TYPE_CHECKING:
    from ..backends.triton.launch import Measured

# Predictors and variants. Together they call every op, and gates of both kernel sizes.
_MODELS = (("convlstm", "paper"), ("predrnn", "official"))
_FRAMES = 3


def tune(
    channels: Iterable[int], dtypes: Iterable[str], size: tuple[int, int], batch: int, device: str = "cuda"
) -> list[Measured]:
    """Measure, and keep, the fastest blocks for layers of these widths and dtypes, forward and backward.

    Args:
        channels: widths of the layers; a MotionGRU's cell has a quarter of it.
        dtypes: names of dtypes, such as "bfloat16".
        size: height and width of the layers' maps, even numbers.
        batch: the number of clips.
        device: where the models run.

    Raises:
        ValueError: Triton's kernels cannot run here, or run in its interpreter, or a model has no such size.
    """
    reason = triton.unavailable_reason()
    if reason is None and triton.INTERPRETED:
        reason = "TRITON_INTERPRET=1 runs Triton's kernels on the CPU, where their time says nothing of a GPU"
    if reason is not None:
        raise ValueError(f"tune needs a GPU that runs Triton's kernels: {reason}")
    from ..backends.triton.launch import measuring

    with backends.backend("triton"), measuring() as measured:
        for width in channels:
            for dtype in dtypes:
                for predictor, variant in _MODELS:
                    model = MotionRNN(predictor, 1, (width, width), patch_size=1, variant=variant)
                    _run(model.to(device, getattr(torch, dtype)), size, batch)
    return measured


def _run(model: MotionRNN, size: tuple[int, int], batch: int) -> None:
    """Run a training step and a prediction, with the deterministic kernels as well."""
    weight = next(model.parameters())
    frames = torch.rand(batch, _FRAMES, 1, *size, device=weight.device, dtype=weight.dtype)
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    try:
        for deterministic in (False, True):
            # PyTorch's own operations may have no deterministic form.
            torch.use_deterministic_algorithms(deterministic, warn_only=True)
            model(frames, _FRAMES - 1).square().mean().backward()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    with torch.no_grad():
        model(frames, _FRAMES - 1)


def table(measured: Sequence[Measured]) -> str:
    """Return the choices as lines for a reader, with the milliseconds of the block that the table has."""
    head = ("op", "channels", "dtype", "size", "warps", "ms", "ms of the default")
    rows = [
        (
            " ".join(filter(None, (c.row.op, c.row.kernel))), str(c.row.channels), c.row.dtype, str(c.row.size),
            str(c.row.warps), f"{c.milliseconds:.4f}", f"{c.of_table:.4f}",
        )
        for c in measured
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in (head, *rows)
    ]
    if not measured:
        return "nothing was measured"
    return "\n".join([f"{measured[0].row.gpu}, Triton {measured[0].row.triton}", "", *lines])
