"""Images of handwritten digits, with training, validation and test images kept apart.

There are two sources:

"sklearn"   scikit-learn's 1797 handwritten digits, 8x8 with 17 grey levels, enlarged smoothly to 28x28: real
            handwriting without a download, but *not* MNIST. They are split by position: train 0-1256,
            val 1257-1526, test 1527-1796.
a folder    MNIST's IDX files, or any set in that format, plain or gzipped: `train-images-idx3-ubyte[.gz]` and
            `t10k-images-idx3-ubyte[.gz]`. The test split is t10k, validation is the last twelfth of the training
            file (5,000 of MNIST's 60,000), and training is the rest.

The split depends on no seed, and nothing is shuffled.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import check_split

# The side of MNIST's images in pixels; its digits fill 20 of the 28.
DIGIT_SIZE = 28
_SKLEARN_BOUNDS = {"train": (0, 1257), "val": (1257, 1527), "test": (1527, 1797)}
# The first number of an IDX file of unsigned bytes in three dimensions.
_IDX_MAGIC = 0x00000803


def load_digits(source: str | os.PathLike[str] = "sklearn", split: str = "train") -> Tensor:
    """Return the digit images of one split.

    Args:
        source: "sklearn" for scikit-learn's digits, or a folder with MNIST's IDX files, plain or gzipped. Of the
            folder, test is `t10k-images-idx3-ubyte`; validation is the last twelfth of `train-images-idx3-ubyte`,
            training the rest of it.
        split: "train", "val" or "test".

    Returns:
        uint8 (N, H, W), 0 for paper and 255 for ink; H = W = 28 for scikit-learn and MNIST.

    Raises:
        ValueError: an unknown split, or a file that is not a complete IDX image file.
        FileNotFoundError: there is no such folder or file.
        ModuleNotFoundError: the source is "sklearn" and scikit-learn is not installed.
    """
    check_split(split)
    if source == "sklearn":
        return _sklearn_digits(split).clone()
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"digits must be 'sklearn' or a folder with MNIST's IDX files; {str(folder)!r} is no folder"
        )
    if split == "test":
        return read_idx_images(_find_idx(folder, "t10k-images-idx3-ubyte"))
    path = _find_idx(folder, "train-images-idx3-ubyte")
    images = read_idx_images(path)
    if len(images) < 2:
        raise ValueError(f"{path}: train and validation need at least 2 images; it has {len(images)}")
    n_train = len(images) - max(1, len(images) // 12)
    return images[:n_train] if split == "train" else images[n_train:]


@cache
def _sklearn_digits(split: str) -> Tensor:
    """Return scikit-learn's digits as uint8 (N, 28, 28); enlarging takes a second, once in a process."""
    try:
        from sklearn.datasets import load_digits as load
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "digits='sklearn' needs scikit-learn: pip install it, or name a folder with MNIST's IDX files"
        ) from None
    first, last = _SKLEARN_BOUNDS[split]
    return _enlarged(torch.from_numpy(load().images).float()[first:last])


def _enlarged(images: Tensor) -> Tensor:
    """Enlarge ink counts (N, 8, 8) from 0 to 16 to uint8 (N, 28, 28), digits in the middle 20x20 as in MNIST.

    A count is the number of ink pixels in a 4x4 block of a binary scan, so the image is a box-filtered drawing of
    which a block covers 2.5 final pixels. Interpolated to four times the final size, a steep ramp about one half
    restores a stroke's edge without changing the amount of ink, and averaging down again smooths that edge. Plain
    interpolation alone leaves a blur.
    """
    # Two empty blocks on each side: 12 blocks of 10 fine pixels make 30 final pixels, one too many on each side.
    paper = F.pad(images[:, None] / 16, [2, 2, 2, 2])
    fine = F.interpolate(paper, scale_factor=10, mode="bicubic")
    strokes = ((fine - 0.25) / 0.5).clamp(0, 1)
    return (F.avg_pool2d(strokes, 4)[:, 0, 1:-1, 1:-1] * 255).round().to(torch.uint8)


def _find_idx(folder: Path, name: str) -> Path:
    """Return the path of an IDX file, plain or gzipped; raise a FileNotFoundError if there is neither."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder}: neither {name} nor {name}.gz is in this folder")


def read_idx_images(path: str | os.PathLike[str]) -> Tensor:
    """Return the images of an IDX file as uint8 (N, rows, columns); a name that ends in .gz is a gzipped file.

    The format is four big-endian 32-bit integers, 2051, N, rows and columns, followed by exactly N*rows*columns
    bytes.

    Raises:
        ValueError: the file cannot be read, is damaged, or is of another format.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) < 16:
        raise ValueError(f"{path}: an IDX image file has 16 bytes of header; this one ends after {len(data)}")
    magic, n, rows, columns = struct.unpack(">4I", data[:16])
    if magic != _IDX_MAGIC:
        raise ValueError(
            f"{path}: an IDX image file begins with the number {_IDX_MAGIC}; this one with {magic}"
        )
    if not n * rows * columns:
        raise ValueError(f"{path}: its header states {n} images of {rows}x{columns}; there must be a pixel")
    expected = 16 + math.prod((n, rows, columns))
    if len(data) != expected:
        fault = "cut short" if len(data) < expected else "too long"
        images = f"{n} images of {rows}x{columns}"
        raise ValueError(f"{path}: {fault}: {images} make {expected} bytes; it has {len(data)}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=16).view(n, rows, columns)
