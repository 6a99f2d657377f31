"""The blocks that were measured on GPUs, as `motionrnn tune --rows` prints them. None has been measured yet."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """The fastest block of an op on a GPU.

    gpu: the name by torch.cuda.get_device_name. triton: the version that it was measured with. op, kernel, channels: as
    `launch.in_blocks` takes them. dtype: of the features, such as "bfloat16". size, warps: of the block.
    """

    gpu: str
    triton: str
    op: str
    kernel: str
    channels: int
    dtype: str
    size: int
    warps: int


ROWS: list[Row] = []
