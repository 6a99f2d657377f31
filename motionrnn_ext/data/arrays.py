"""Files of one array: NumPy's .npy and .npz, PyTorch's .pt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..files import load_tensors
from .files import because

if TYPE_CHECKING:
    import numpy as np

TENSORS = (".pt", ".pth")


def read_array(path: Path) -> np.ndarray[Any, Any]:
    """Return the array of a .npy file, the only array of a .npz file, or the tensor of a file of `torch.save`.

    The array of a .npy file is mapped into memory and stays on the disk until it is read. A sparse tensor is made
    dense, a bfloat16 one float32. No code of the file runs.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds Python objects, no array or several.
    """
    is_tensor = path.suffix.lower() in TENSORS
    try:
        found = _tensor(load_tensors(path)) if is_tensor else _array(path)
    except _NotOne as error:
        raise ValueError(f"{path} {error}") from None
    # A damaged file can raise anything.
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
        kind = "file of one tensor" if is_tensor else f".npy file of numbers{because(error)}"
        raise ValueError(f"{path} is not a {kind}") from None
    return found


class _NotOne(Exception):
    """A file holds no array, or several."""


def _array(path: Path) -> Any:
    """Return the only array of a NumPy file, mapped into memory if it is a .npy file that is not empty."""
    import numpy as np

    loaded = np.load(path, mmap_mode="r" if path.stat().st_size else None, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        names = loaded.files
        if len(names) != 1:
            held = f"the arrays {', '.join(names)}" if names else "no array"
            raise _NotOne(f"holds {held}; it should hold one: save that as a .npy file")
        return loaded[names[0]]


def _tensor(loaded: Any) -> Any:
    """Return a loaded tensor as a dense NumPy array."""
    if not isinstance(loaded, Tensor):
        raise _NotOne(f"holds a {type(loaded).__name__}; it should hold one tensor: save that alone")
    dense = loaded.detach().to_dense() if loaded.layout != torch.strided else loaded.detach()
    return (dense.float() if dense.dtype == torch.bfloat16 else dense).resolve_neg().numpy()
