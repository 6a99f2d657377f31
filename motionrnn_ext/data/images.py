"""Images of files as bytes, and their sizes changed as OpenCV does it."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .files import unreadable

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")
BYTE_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")


def read_image(path: str | os.PathLike[str], channels: int, *, seen: bool = False) -> Tensor:
    """A jpg or png file as uint8 (channels, H, W): 1 channel is luma, 3 are RGB; grey and palettes are converted. It is
    as it is stored, or as it is `seen`, see `as_seen`.

    Raises:
        ValueError: no such file, one that is damaged or no image, or more than 8 bits a channel.
        ModuleNotFoundError: without pillow.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, n_frames = image.mode, 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            pixels = None
            if mode in BYTE_MODES:
                shown = as_seen(image, Path(path).parent) if seen else image
                pixels = np.array(shown.convert("RGB" if channels == 3 else "L"))
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such image") from None
    except Exception as error:  # a damaged file can raise anything, SyntaxError and struct.error included
        raise unreadable(Path(path), error, "no jpg or png image") from None
    if pixels is None:
        raise ValueError(f"{path}: frames must have 8 bits a channel; this image has pillow's mode {mode!r}")
    if n_frames > 1:  # the second picture of MPO, a camera's jpg, is no frame
        raise ValueError(f"{path} is a film of {n_frames} frames; it should be one image, or be given alone")
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1)


def as_seen(image: Any, source: Path) -> Any:
    """An image of pillow's turned as its EXIF data say, and over black where it is transparent, with a warning that
    names the source, a folder or film, which Python shows once. Data sets leave both out, as their programs do."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema()[0] < 255:
            warnings.warn(f"{source} has transparent pixels; they are laid over black", stacklevel=2)
            seen = Image.new("RGB", image.size)
            seen.paste(image, mask=alpha)
            return seen
    return image


def read_images(paths: Sequence[Path], channels: int, *, seen: bool = False) -> Tensor:
    """Images of one size, one or more, as uint8 (T, channels, H, W); a ValueError names the first of another size."""
    images = [read_image(path, channels, seen=seen) for path in paths]
    for path, image in zip(paths, images):
        if image.shape != images[0].shape:
            sizes = [f"{found.shape[1]}x{found.shape[2]}" for found in (image, images[0])]
            raise ValueError(
                f"{path} is {sizes[0]}, the first frame {sizes[1]} ({paths[0].name}); all must have one size"
            )
    return torch.stack(images)


def resized(
    frames: Tensor, size: Sequence[int], mode: str = "bilinear", *, antialias: bool = False
) -> Tensor:
    """(..., H, W) -> (..., *size), uint8 or float32 kept; bytes are rounded, halves up.

    Without `antialias` that is OpenCV's INTER_LINEAR, or INTER_CUBIC (a = -0.75) for mode "bicubic": sampled at
    half-pixel centres, edges repeated. OpenCV's fixed-point arithmetic differs by at most 1 of 255.
    """
    if frames.shape[-2:] == tuple(size):
        return frames
    images = frames.reshape(-1, 1, *frames.shape[-2:]).float()
    images = F.interpolate(images, tuple(size), mode=mode, align_corners=False, antialias=antialias)
    if frames.dtype == torch.uint8:
        images = (images + 0.5).floor().clamp(0, 255).to(torch.uint8)
    return images.view(*frames.shape[:-2], *size)


def resized_known(
    frames: Tensor, size: Sequence[int], mode: str = "bilinear", *, antialias: bool = False
) -> Tensor:
    """`resized` of floats of which some are missing (nan).

    A pixel is the weighted mean of the known ones that `resized` makes it of, and missing where those have less than
    half of the weight.
    """
    missing = frames.isnan()
    if frames.shape[-2:] == tuple(size) or not missing.any():
        return resized(frames, size, mode, antialias=antialias)
    weight = resized((~missing).to(frames), size, mode, antialias=antialias)
    sums = resized(frames.masked_fill(missing, 0), size, mode, antialias=antialias)
    return torch.where(weight < 0.5, math.nan, sums / weight)


def image_files(folder: Path, endings: Sequence[str] = IMAGE_ENDINGS) -> list[Path]:
    """The jpg and png files of a folder by name, numbers within names by their values; hidden files are left out."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in endings)
    return sorted((path for path in found if path.name[0] != "."), key=by_name)


def by_name(path: Path) -> list[Any]:
    """A key to sort by: frame_9 before frame_10, and before frame_010 where both are there."""
    parts = re.split(r"(\d+)", path.name)
    return [[int(part) if i % 2 else part for i, part in enumerate(parts)], path.name]
