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


def frames_of(array: Any, path: Path) -> Any:
    """Return an array of frames, (T, H, W), (T, 1 or 3, H, W) or (T, H, W, 1 or 3), as a view (T, 1 or 3, H, W).

    Raises:
        ValueError: the array has another shape or type than bool, uint8 or float. The message names the path.
    """
    shape, kind = array.shape, array.dtype.kind
    # One picture (H, W, 3) has the shape of H frames with 3 columns each.
    is_picture = array.ndim == 3 and shape[2] in (1, 3) and shape[1] > 3
    is_clip = array.ndim == 3 or (array.ndim == 4 and (shape[1] in (1, 3) or shape[3] in (1, 3)))
    if kind not in "buf" or not is_clip or is_picture or not array.size:
        raise ValueError(
            f"{path} must hold frames (T, H, W) or (T, 1, H, W), for colours (T, 3, H, W) or (T, H, W, 3), uint8 or "
            f"float; it holds {array.dtype} {shape}" + (", which is one picture" if is_picture else "")
        )
    if kind == "u" and array.dtype != "uint8":
        raise ValueError(f"{path} must be uint8 or float; it is {array.dtype}")
    if array.ndim == 3:
        return array[:, None]
    return array if shape[1] in (1, 3) else array.transpose(0, 3, 1, 2)


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
