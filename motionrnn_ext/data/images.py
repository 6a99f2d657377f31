"""Image files read as bytes, and resizing with OpenCV's rules."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..caller import stacklevel_of_user
from .files import unreadable

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")
# The number of the EXIF entry that says how an image is turned.
_ORIENTATION = 0x0112
# The weights of red, green and blue in grey, in parts of 65536, as pillow has them.
_LUMA = (19595, 38470, 7471)
BYTE_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")


def read_image(path: str | os.PathLike[str], channels: int, *, seen: bool = False) -> Tensor:
    """Read a jpg or png file as uint8 (channels, H, W).

    Args:
        path: the file.
        channels: 1 for luma, 3 for RGB; grey images and palettes are converted.
        seen: whether the image is turned and laid over black as a viewer shows it, see `as_seen`; otherwise its pixels
            are taken as stored.

    Raises:
        ValueError: there is no such file, it is damaged or not an image, or it has more than 8 bits a channel.
        ModuleNotFoundError: pillow is not installed.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            deep, n_frames = deep_format(image), 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            pixels = None
            if deep is None:
                shown = (as_seen if seen else as_stored)(image, Path(path).parent)
                pixels = np.array(shown.convert("RGB" if channels == 3 else "L"))
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such image") from None
    # A damaged file can raise anything, SyntaxError and struct.error included.
    except Exception as error:
        raise unreadable(Path(path), error, "a jpg or png image") from None
    if pixels is None:
        raise ValueError(f"{path}: frames must have 8 bits a channel; this image has pillow's mode {deep!r}")
    # A camera's jpg may be an MPO file, whose second picture is a preview and not a frame.
    if n_frames > 1:
        raise ValueError(f"{path} is a film of {n_frames} frames; it should be one image, or be given alone")
    return torch.from_numpy(pixels).view(*pixels.shape[:2], channels).permute(2, 0, 1)


def deep_format(image: Any) -> str | None:
    """Return pillow's name for the pixels of an image that has more than 8 bits a channel, or None for any other.

    It has to be called before the image is loaded: colours of 16 bits then have the mode of those of 8, and only the
    raw mode of the file, such as "RGB;16B", tells them apart.
    """
    if image.mode not in BYTE_MODES:
        return str(image.mode)
    return next((raw for tile in image.tile if ";16" in (raw := str(tile[3]))), None)


def as_stored(image: Any, source: Path) -> Any:
    """Return a pillow image as it is stored, as the data sets' official programs read it.

    A warning, which names the folder `source`, says if `as_seen` would give another image.
    """
    if hidden := " and ".join(_hidden(image)):
        warnings.warn(
            f"{source} has {hidden}, which a data set reads as stored; a model's given frames are read as a viewer "
            "shows them: store the frames as they are seen",
            stacklevel=stacklevel_of_user(),
        )
    return image


def as_seen(image: Any, source: Path) -> Any:
    """Return a pillow image as a viewer shows it: turned by its EXIF data, transparent pixels laid over black.

    Transparent pixels bring a warning that names the source, a folder or film, so that Python shows it once for all of
    its images.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    alpha = _transparency(image)
    if alpha is None:
        return image
    warnings.warn(
        f"{source} has transparent pixels; they are laid over black", stacklevel=stacklevel_of_user()
    )
    seen = Image.new("RGB", image.size)
    seen.paste(image.convert("RGBA"), mask=alpha)
    return seen


def _hidden(image: Any) -> Iterator[str]:
    """Yield what makes an image look other than it is stored."""
    if image.getexif().get(_ORIENTATION, 1) != 1:
        yield "images that their EXIF data turn"
    if _transparency(image) is not None:
        yield "transparent pixels"


def _transparency(image: Any) -> Any | None:
    """Return the alpha channel of a pillow image that has transparent pixels, or None for any other."""
    if not (image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info):
        return None
    alpha = (image if image.mode == "RGBA" else image.convert("RGBA")).getchannel("A")
    return alpha if alpha.getextrema()[0] < 255 else None


def read_images(paths: Sequence[Path], channels: int, *, seen: bool = False) -> Tensor:
    """Read images of one size as uint8 (T, channels, H, W); a ValueError names the first image of another size."""
    images = [read_image(path, channels, seen=seen) for path in paths]
    for path, image in zip(paths, images):
        if image.shape != images[0].shape:
            sizes = [f"{found.shape[1]}x{found.shape[2]}" for found in (image, images[0])]
            raise ValueError(
                f"{path} is {sizes[0]}, the first frame {sizes[1]} ({paths[0].name}); all must have one size"
            )
    return torch.stack(images)


def luma(frames: Tensor) -> Tensor:
    """Return the luma (T, 1, H, W) of RGB frames (T, 3, H, W), floats, or uint8 as pillow computes it."""
    if frames.dtype != torch.uint8:
        # In double precision three equal channels give their own value, so that a no-data value stays what it is.
        weights = torch.tensor(_LUMA, dtype=torch.float64) / 65536
        return torch.einsum("tchw,c->thw", frames.double(), weights)[:, None].to(frames.dtype)
    red, green, blue = (weight * channel for weight, channel in zip(_LUMA, frames.int().unbind(1)))
    return ((red + green + blue + 0x8000) >> 16).to(torch.uint8)[:, None]


def in_channels(frames: Tensor, channels: int) -> Tensor:
    """Return grey or RGB frames (T, 1 or 3, H, W) with this number of channels: luma for 1, grey three times for 3."""
    if channels == 1 and frames.shape[1] == 3:
        return luma(frames)
    return frames.expand(-1, channels, -1, -1)


def resized(
    frames: Tensor, size: Sequence[int], mode: str = "bilinear", *, antialias: bool = False
) -> Tensor:
    """Resize frames (..., H, W) to (..., *size); the dtype, uint8 or float32, stays. Bytes are rounded, halves up.

    Without `antialias` the result is that of OpenCV's INTER_LINEAR, or of INTER_CUBIC (a = -0.75) for the mode
    "bicubic": it is sampled at half-pixel centres, and edges are repeated. OpenCV's fixed-point arithmetic differs by
    at most 1 of 255.
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
    """Resize floats with missing values (nan) as `resized` does.

    A pixel is the weighted mean of the known pixels among those that `resized` would use. It is missing if the known
    ones have less than half of the weight.
    """
    missing = frames.isnan()
    if frames.shape[-2:] == tuple(size) or not missing.any():
        return resized(frames, size, mode, antialias=antialias)
    weight = resized((~missing).to(frames), size, mode, antialias=antialias)
    sums = resized(frames.masked_fill(missing, 0), size, mode, antialias=antialias)
    return torch.where(weight < 0.5, math.nan, sums / weight)


def image_files(folder: Path, endings: Sequence[str] = IMAGE_ENDINGS) -> list[Path]:
    """Return the jpg and png files of a folder of frames in the order of `by_name`; hidden files are left out.

    Raises:
        ValueError: two files have one name but for their endings.
    """
    found = (path for path in folder.iterdir() if path.suffix.lower() in endings)
    paths = sorted((path for path in found if path.name[0] != "."), key=by_name)
    by_stem: dict[str, str] = {}
    for path in paths:
        twin = by_stem.setdefault(path.stem, path.name)
        if twin != path.name:
            raise ValueError(
                f"{folder} has a frame twice, as {twin} and {path.name}; it should have each once"
            )
    return paths


def by_name(path: Path) -> list[Any]:
    """Return a key that sorts numbers within names by value: frame_9 before frame_10, and before frame_010."""
    parts = re.split(r"(\d+)", path.name)
    return [[int(part) if i % 2 else part for i, part in enumerate(parts)], path.name]
