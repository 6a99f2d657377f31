"""Clips for a trained model: held-out clips of a data set, which no training has seen, and a user's own frames."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..caller import stacklevel_of_user
from ..data.arrays import frames_of, read_array
from ..data.images import IMAGE_ENDINGS, image_files, luma, read_images
from ..data.registry import DATASETS, ClipDataset, find, open_clips
from ..data.times import gaps
from ..data.videos import FILMS, VIDEOS, read_film
from ..models import MotionRNN, frame_sizes
from ..pixels import ROUNDING, how_to_declare, marked, share_outside, undeclared, value_range
from ..training.config import Config
from ..training.runs import PathLike, RunError

# The endings of images in a user's folder of frames.
IMAGES = (*IMAGE_ENDINGS, ".bmp", ".tif", ".tiff", ".webp")


def held_out(
    config: Config,
    n_clips: int | None = None,
    *,
    split: str = "test",
    n_frames: int | None = None,
    **changes: Any,
) -> ClipDataset:
    """Return the clips of a split of a run's data set, by default those of the test, which no training has seen.

    Clips of another data set come in the colour order of the run's own one, RGB or BGR, which its model has learnt.

    Args:
        n_clips: the number of clips, or None for all that there are.
        changes: settings to change, such as root or dataset.

    Raises:
        RunError: a change is to a setting that the data set does not take.
    """
    changed = replace(config, **changes)
    for name in changes:
        # `open_clips` checks the one; the other changes no clip.
        if name in ("missing", "dbz"):
            continue
        takers = [other for other, entry in DATASETS.items() if name in entry.settings]
        if takers and changed.dataset not in takers:
            raise RunError(
                f"{name} (--{name.replace('_', '-')}) is for {', '.join(takers)}; {changed.dataset} has none"
            )
    settings = {**changed.data(), "n_frames": n_frames or config.n_frames}
    return open_clips(split=split, length=n_clips, colours=DATASETS[config.dataset].colours, **settings)


def held_out_clip(config: Config, index: int, n_frames: int, **changes: Any) -> Tensor:
    """Return test clip `index`, (T, C, H, W). Raise a RunError if there is none of this index."""
    generated = "test" in find(changes.get("dataset", config.dataset)).generated
    clips = held_out(config, index + 1 if generated else None, n_frames=n_frames, **changes)
    if index >= len(clips):
        raise RunError(
            f"the clip must be one of 0 to {len(clips) - 1}, the test clips that there are; got {index}"
        )
    return clips[index]


def other_data(
    config: Config, dataset: str | None = None, root: PathLike | None = None, **settings: Any
) -> dict[str, Any]:
    """Return the settings of a run that a user's choice of data changes. A None in `settings` changes nothing."""
    changes = {name: value for name, value in settings.items() if value is not None}
    if changes.get("pixel_max", config.pixel_max) != config.pixel_max:
        # Pixel 1 then stands for another value, which `dbz` has to say.
        changes = {"dbz": None, **changes}
    root = None if root is None else os.fspath(root)
    # Another data set has files of its own, its own value for missing pixels and its own reflectivities.
    if dataset not in (None, config.dataset):
        return {"dataset": dataset, "root": root, "missing": None, "dbz": None, **changes}
    named = {"dataset": dataset, "root": root}
    return {**{name: value for name, value in named.items() if value is not None}, **changes}


def in_rgb(frames: Tensor, colours: str) -> Tensor:
    """Return frames (..., C, H, W) with the channels in the order of pictures, RGB."""
    return frames.flip(-3) if colours == "BGR" else frames


def read_frames(path: Path, colours: str = "grey", missing: float | None = None) -> Tensor:
    """Return all of a user's own frames, as `last_frames` reads them."""
    return last_frames(path, None, colours, missing)[0]


def last_frames(
    path: Path,
    n: int | None,
    colours: str = "grey",
    missing: float | None = None,
    *,
    pixel_max: float | None = None,
    interval: float | None = None,
) -> tuple[Tensor, int]:
    """Return the last `n` of a user's own frames (None is all), and how many frames there are in all.

    The frames are float32 (T, C, H, W) in [0, 1] at their own size, with nan for missing pixels. No more than `n`
    images or frames of a film are in memory. A warning says if the names of images skip some time among these.

    Args:
        path: a file with one array (.npy, .npz) or tensor (.pt), (T, H, W), (T, C, H, W) or (T, H, W, C), of bool,
            uint8 or floats; a folder of images, read in the order of their names; a gif or another moving image; or a
            video.
        colours: the colour order of the model's frames, as in `DataSet`. Images are converted to it; the three channels
            of an array are taken to have it. Frames in colour are made grey for a model of grey frames, with a warning;
            grey frames are repeated in three channels for a model of frames in colour.
        missing: the stored value of pixels without data, or nan; None if all pixels have data.
        pixel_max: the stored value that becomes 1, as in `FrameSequences`: values outside of 0 to it become 0 and 1,
            with a warning. None is 255 for bytes; floats are then in [0, 1].
        interval: the time between the images of a folder, see `data.times.gaps`.

    Raises:
        RunError: there is no such file, it holds no plain array of numbers, or one of another shape or range.
        ValueError: an image cannot be read, or images differ in size.
        ModuleNotFoundError: no package that reads videos is installed.
    """
    if path.is_dir() or path.suffix.lower() in (*FILMS, *VIDEOS):
        return _last_images(path, n, colours, missing, pixel_max, interval)
    frames, n_frames = _last_of_array(path, n, missing, pixel_max)
    if colours == "grey" and frames.shape[1] == 3:
        _warn_of_grey(frames, path)
        frames = luma(frames)
    return frames if colours == "grey" else frames.expand(-1, 3, -1, -1), n_frames


def _last_of_array(
    path: Path, n: int | None, missing: float | None, pixel_max: float | None
) -> tuple[Tensor, int]:
    """Return the last `n` frames of an array's file, (T, 1 or 3, H, W), and how many it has."""
    import numpy as np

    try:
        array = frames_of(read_array(path), path)
    except ValueError as error:
        raise RunError(str(error)) from None
    stored = torch.from_numpy(array.astype(np.float32, order="C"))
    is_bytes = array.dtype == np.uint8
    if is_bytes:
        _warn_of_code(missing, path)
    frames = marked(stored / (pixel_max or (255 if is_bytes else 1)), stored, missing)
    lowest, highest = value_range(frames)
    n_nan = undeclared(stored, missing)
    is_outside = lowest < -ROUNDING or highest > 1 + ROUNDING
    if n_nan or (is_outside and pixel_max is None):
        hint = "no data? --missing nan" if missing is None else how_to_declare(missing)
        found = f"{n_nan:,} of {frames.numel():,} are nan ({hint})" if n_nan else "they"
        others = ", the others" if n_nan else ""
        spread = "" if n_nan == frames.numel() else f"{others} go from {lowest:.7g} to {highest:.7g}"
        raise RunError(f"{path} must have values in [0, 1]; {found}{spread}")
    if is_outside:
        _warn_of_range(frames, path, pixel_max)
    elif not is_bytes and pixel_max is not None and 0 < pixel_max * highest <= 1 + ROUNDING < pixel_max:
        warnings.warn(
            f"{path} has no value above {pixel_max * highest:.4g}, and {pixel_max:g} (--pixel-max) becomes 1: if its "
            "values are in [0, 1] already, give --pixel-max 1",
            stacklevel=stacklevel_of_user(),
        )
    return (frames if n is None else frames[-n:]).clamp(0, 1), len(array)


def _last_images(
    path: Path,
    n: int | None,
    colours: str,
    missing: float | None,
    pixel_max: float | None,
    interval: float | None,
) -> tuple[Tensor, int]:
    """Return the last `n` images of a folder or frames of a film, (T, 1 or 3, H, W), and how many there are."""
    if path.is_dir():
        paths = _images_of(path)
        read = paths if n is None else paths[-n:]
        _warn_of_gaps(paths, read, interval)
        images, n_frames = read_images(read, 3, seen=True), len(paths)
    else:
        images, n_frames = read_film(path, n)
    if colours == "grey":
        _warn_of_grey(images, path)
        images = luma(images)
    _warn_of_code(missing, path)
    frames = marked(images.float() / (pixel_max or 255), images, missing)
    if value_range(frames)[1] > 1 + ROUNDING:
        _warn_of_range(frames, path, pixel_max)
    # The exchange of channels from RGB to BGR is the one from BGR to RGB.
    return in_rgb(frames.clamp(0, 1), colours), n_frames


def _images_of(folder: Path) -> list[Path]:
    """Return the paths of a folder's images in the order of their names. Raise a RunError if there is none."""
    paths = image_files(folder, IMAGES)
    if not paths:
        inner = next((path for path in sorted(folder.iterdir()) if path.is_dir()), None)
        hint = f"; name one sequence, such as {inner}" if inner is not None else ""
        raise RunError(f"{folder}: no png, jpg, bmp, tif or webp image is in this folder{hint}")
    return paths


def _warn_of_code(missing: float | None, path: Path) -> None:
    """Warn if bytes cannot hold the no-data value, a number, so that no pixel of theirs is missing."""
    if missing is not None and not math.isnan(missing) and missing not in range(256):
        text = f"{path} holds bytes, none of which is {missing:g} (--missing): no pixel is missing"
        warnings.warn(text, stacklevel=stacklevel_of_user())


def _warn_of_range(frames: Tensor, path: Path, pixel_max: float | None) -> None:
    """Warn of the values outside of 0 to `pixel_max`, which count as 0 and 1."""
    share = share_outside(frames)
    text = f"{path}: {share:.2%} of the values are outside of 0 to {pixel_max:g} (--pixel-max), and count as 0 and 1"
    warnings.warn(text, stacklevel=stacklevel_of_user())


def _warn_of_gaps(paths: Sequence[Path], read: Sequence[Path], interval: float | None) -> None:
    """Warn if the names of the last images, which are read, skip some time."""
    try:
        cuts = gaps([path.stem for path in paths], interval)
    except ValueError:
        # An interval of the run's data does not count for names without times.
        return
    first = len(paths) - len(read)
    if found := next((cut for cut in cuts if cut > first), None):
        text = f"{paths[found - 1].name} and {paths[found].name}: there is a gap in time between these given frames"
        warnings.warn(text, stacklevel=stacklevel_of_user())


def _warn_of_grey(frames: Tensor, path: Path) -> None:
    """Warn if frames (T, 3, H, W), which are made grey, are in colour. Missing values (nan) have no colour."""
    if not all(frames[:, 0].allclose(frames[:, channel], 0, 0, equal_nan=True) for channel in (1, 2)):
        text = f"{path} is in colour; its frames are made grey, as the model's are"
        warnings.warn(text, stacklevel=stacklevel_of_user())


def fitting(model: MotionRNN, frames: Tensor, pad: bool) -> Tensor:
    """Return frames (T, C, H, W), with `pad` padded to a size that the model takes by repeating last row and column.

    Raises:
        RunError: patches and MotionGRUs do not divide the frames' size, and `pad` is not set.
    """
    below, right = frame_sizes.missing_size(model, frames)
    if not pad and model.image_size is None and (below or right):
        height, width = frames.shape[-2:]
        divisor = frame_sizes.size_divisor(model)
        raise RunError(
            f"frames are {height}x{width}; both should be divisible by {divisor} (--pad repeats last row and column)"
        )
    if not pad or below < 0 or right < 0:
        return frames
    return frame_sizes.padded(frames, below, right)
