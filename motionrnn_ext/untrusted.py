"""Reading files of tensors that may come from anywhere."""

from __future__ import annotations

import os
import warnings
from typing import Any, BinaryIO

import torch


def load_tensors(file: str | os.PathLike[str] | BinaryIO, map_location: str | torch.device = "cpu") -> Any:
    """What is in a file of torch.save, by torch's unpickler that runs no code of it.

    A damaged file can raise anything, and torch's texts recommend to load it unsafely: callers say it better, which is
    why torch's warnings about foreign pickles are not shown either.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(file, map_location=map_location, weights_only=True)
