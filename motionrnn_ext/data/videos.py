"""Films as bytes: moving images by pillow, videos by imageio and what decodes them."""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import because
from .images import BYTE_MODES, as_seen

FILMS = (".gif", ".webp", ".apng", ".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv")


def read_film(path: Path, last: int | None = None) -> tuple[Tensor, int]:
    """The last frames of a file of `FILMS` or `VIDEOS`, by the ending of its name, as uint8 RGB (T, 3, H, W), and how
    many the file has; None is all of them. No more than those are in memory at once.

    Raises:
        ValueError: no such file, one that is damaged or has no frames, frames of several sizes or more than 8
            bits a channel.
        ModuleNotFoundError: nothing is installed that reads it.
    """
    import numpy as np

    if not path.is_file():
        raise ValueError(f"{path} cannot be read: there is no such file")
    frames = _decoded(path, _plugin(path)) if path.suffix.lower() in VIDEOS else _drawn(path)
    images, count = deque[Any](maxlen=last), 0
    try:
        for image in frames:
            images.append(image)
            count += 1
    except _NotBytes as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path}: damaged, or no {path.suffix[1:]} file{because(error)}") from None
    if not images:
        raise ValueError(f"{path}: there are no frames in this file")
    sizes = {f"{image.shape[0]}x{image.shape[1]}" for image in images}
    if len(sizes) > 1:
        raise ValueError(f"{path}: frames are {', '.join(sorted(sizes))}; all must have one size")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), count


class _NotBytes(Exception):
    """Frames of more than 8 bits a channel."""


def _drawn(path: Path) -> Iterator[Any]:
    import numpy as np
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            if frame.mode not in BYTE_MODES:
                raise _NotBytes(
                    f"frames must have 8 bits a channel; this image has pillow's mode {frame.mode!r}"
                )
            yield np.array(as_seen(frame, path).convert("RGB"))


def _plugin(path: Path) -> str:
    """imageio's name of the decoder that is installed."""
    for package, plugin in (("av", "pyav"), ("imageio_ffmpeg", "FFMPEG")):
        if importlib.util.find_spec(package) is not None:
            return plugin
    raise ModuleNotFoundError(
        f"{path} is a video; reading it needs the package av: pip install av (or give its frames as a folder of images)"
    )


def _decoded(path: Path, plugin: str) -> Iterator[Any]:
    import imageio.v3

    options = {"format": "rgb24"} if plugin == "pyav" else {}
    yield from imageio.v3.imiter(path, plugin=plugin, **options)
