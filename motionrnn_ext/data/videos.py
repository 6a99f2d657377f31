"""Films read as bytes: animated images by pillow, videos by imageio and an installed decoder."""

from __future__ import annotations

import importlib.util
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..caller import stacklevel_of_user
from .files import because
from .images import as_seen, deep_format

FILMS = (".gif", ".webp", ".apng", ".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv")


def read_film(path: Path, last: int | None = None) -> tuple[Tensor, int]:
    """Read the last frames of a film. Only these are in memory at once.

    Args:
        path: an animated image with an ending in `FILMS`, or a video with an ending in `VIDEOS`.
        last: the number of frames to return; None returns all.

    Returns:
        The frames as uint8 RGB (T, 3, H, W), and the number of frames in the file.

    Raises:
        ValueError: there is no such file, it is damaged, it has no frames, its frames have several sizes or more than
            8 bits a channel.
        ModuleNotFoundError: no package that reads it is installed.
    """
    import numpy as np

    images, count = deque[Any](maxlen=last), 0
    for image in film_frames(path):
        images.append(image)
        count += 1
    if not images:
        raise ValueError(f"{path}: there are no frames in this file")
    sizes = {f"{image.shape[0]}x{image.shape[1]}" for image in images}
    if len(sizes) > 1:
        raise ValueError(f"{path}: frames are {', '.join(sorted(sizes))}; all must have one size")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), count


def film_frames(path: Path) -> Iterator[Any]:
    """Yield the frames of a film, of which one is in memory at a time, as uint8 RGB (H, W, 3).

    Raises:
        ValueError: there is no such file, it is damaged, or its frames have more than 8 bits a channel.
        ModuleNotFoundError: no package that reads it is installed.
    """
    if not path.is_file():
        raise ValueError(f"{path} cannot be read: there is no such file")
    frames = _decoded(path, _plugin(path)) if path.suffix.lower() in VIDEOS else _drawn(path)
    try:
        yield from frames
    except _NotBytes as error:
        raise ValueError(f"{path}: {error}") from None
    # A damaged file can raise anything.
    except Exception as error:
        raise ValueError(f"{path}: damaged, or not a {path.suffix[1:]} file{because(error)}") from None


class _NotBytes(Exception):
    """A frame has more than 8 bits a channel."""


def _drawn(path: Path) -> Iterator[Any]:
    """Yield the frames of an animated image as uint8 (H, W, 3)."""
    import numpy as np
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        # A camera's jpg may be an MPO file, whose second picture is a preview and not a frame.
        images = islice(ImageSequence.Iterator(image), 1 if image.format == "MPO" else None)
        times = _times_shown([image.info.get("duration", 0) for _ in ImageSequence.Iterator(image)], path)
        for frame, n in zip(images, times):
            if deep := deep_format(frame):
                raise _NotBytes(f"frames must have 8 bits a channel; this image has pillow's mode {deep!r}")
            yield from repeat(np.array(as_seen(frame, path).convert("RGB")), n)


def _times_shown(durations: Sequence[float], path: Path) -> list[int]:
    """Return how many frames each image of a film stands for, by how long it is shown.

    Writers such as pillow join equal frames to one image that is shown longer. The last image counts once, because many
    films pause there. A warning says so if an image stands for several frames.
    """
    shortest = min((duration for duration in durations if duration > 0), default=0)
    times = [max(1, round(duration / shortest)) if shortest else 1 for duration in durations]
    times[-1] = 1
    if longer := sum(n > 1 for n in times):
        warnings.warn(
            f"{path}: {longer} of {len(times)} images are shown longer than others and are repeated, as equal frames",
            stacklevel=stacklevel_of_user(),
        )
    return times


def _plugin(path: Path) -> str:
    """Return imageio's name of an installed decoder."""
    for package, plugin in (("av", "pyav"), ("imageio_ffmpeg", "FFMPEG")):
        if importlib.util.find_spec(package) is not None:
            return plugin
    raise ModuleNotFoundError(
        f"{path} is a video; reading it needs the package av: pip install av (or give its frames as a folder of images)"
    )


def _decoded(path: Path, plugin: str) -> Iterator[Any]:
    """Yield the frames of a video as uint8 (H, W, 3)."""
    import imageio.v3

    options = {"format": "rgb24"} if plugin == "pyav" else {}
    yield from imageio.v3.imiter(path, plugin=plugin, **options)
