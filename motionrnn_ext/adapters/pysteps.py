"""pysteps: a MotionRNN as a nowcast method, which pysteps' verification and blending take by its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pysteps.nowcasts import interface
from pysteps.utils import conversion
from pysteps.utils.transformation import dB_transform

from ..models import MotionRNN
from ..models.ensembles import NOISE
from .sizes import padded

Array = NDArray[np.float64]


def register(
    model: MotionRNN, *, dbz: Sequence[float], name: str = "motionrnn", **options: Any
) -> Callable[..., Array]:
    """Make `pysteps.nowcasts.get_method(name)` return `forecast` with this model, and return that method.

    Args:
        model: a trained model of one channel.
        dbz: the reflectivity in dBZ of the pixels 0 and 1 that it was trained on, such as (0, 70).
        name: the method's name; it replaces a method of that name.
        **options: defaults of further keyword arguments of `forecast`, such as metadata.
    """
    method = partial(forecast, model=model, dbz=dbz, **options)
    interface._nowcast_methods[name.lower()] = method
    return method


def forecast(
    precip: ArrayLike,
    velocity: Any,
    timesteps: int | Sequence[int],
    *,
    model: MotionRNN,
    dbz: Sequence[float],
    metadata: Mapping[str, Any] | None = None,
    n_ens_members: int | None = None,
    noise: float = NOISE,
    seed: int | None = None,
) -> Array:
    """Return a nowcast in the unit and the transform of its input, by the interface of `pysteps.nowcasts`.

    Pixels without data (nan, or masked) are read as no rain; those that have none in any given field are nan.
    Reflectivities outside of `dbz` are moved to its ends. Values below the metadata's threshold become its zerovalue.

    Args:
        precip: (T, H, W), the last fields, oldest first, at the time step that the model was trained on.
        velocity: not used; the model finds the motion itself.
        timesteps: the number of fields to predict, or a list of steps, whole and ascending.
        model: the trained model; it is used as it is, on its device.
        dbz: the reflectivity of the pixels 0 and 1 that it was trained on.
        metadata: pysteps' dict that belongs to `precip`, with unit, transform (None or "dB"), threshold, zerovalue; for
            another relation than Z = 200 R^1.6 with zr_a and zr_b; for mm with accutime.
        n_ens_members: N, the members of an ensemble, made by noise, see `motionrnn_ext.models.ensembles`.
        noise: the ensemble's noise, see `MotionRNN.predict`.
        seed: the seed of that noise; None draws from torch's own generator.

    Returns:
        (timesteps, H, W), or with n_ens_members (N, timesteps, H, W).

    Raises:
        ValueError: an argument has another form; the message names it.
    """
    steps = _steps(timesteps)
    fields: Array = np.ma.filled(np.ma.array(precip, dtype=float), np.nan)
    if fields.ndim != 3 or not len(fields):
        raise ValueError(
            f"precip has shape {fields.shape}; it should be (T, H, W), the last fields, oldest first"
        )
    if metadata is None or metadata.get("transform") not in (None, "dB"):
        what = None if metadata is None else f"of transform {metadata['transform']!r}"
        raise ValueError(f"metadata is {what}; it should be the dict of precip, of transform None or 'dB'")
    if np.isinf(fields).any():
        raise ValueError("precip has infinite values; it should have numbers, and nan where there is no data")
    if len(dbz) != 2 or not dbz[0] < dbz[1]:
        raise ValueError(
            f"dbz is {dbz}; it should be the reflectivity of pixel 0 and the higher one of pixel 1"
        )
    if model.in_channels != 1:
        raise ValueError(f"model has {model.in_channels} channels; it should have 1")
    low, high = dbz
    device, dtype = model.conv_last.weight.device, model.conv_last.weight.dtype
    reflectivity, of_dbz = conversion.to_reflectivity(fields, metadata)
    pixels = torch.from_numpy(((reflectivity - low) / (high - low)).clip(0, 1)).nan_to_num(0.0)
    generator = None if seed is None else torch.Generator(device).manual_seed(seed)
    frames = padded(model, pixels.to(device, dtype)[None, :, None])
    predicted = model.eval().predict(
        frames, steps[-1], generator=generator, members=n_ens_members, noise=noise
    )
    found = predicted[0, ..., 0, : fields.shape[1], : fields.shape[2]].double().cpu().numpy().clip(0, 1)
    found = found[..., [step - 1 for step in steps], :, :]
    # A pixel of 0 is no rain, whatever reflectivity it stands for.
    found = _in_unit(np.where(found > 0, low + (high - low) * found, -math.inf), of_dbz, metadata)
    found[..., np.isnan(fields).all(0)] = np.nan
    return found


def _steps(timesteps: int | Sequence[int]) -> list[int]:
    """Return the numbers of the steps to predict."""
    given = np.atleast_1d(np.asarray(timesteps, float))
    whole = (given == given.round()).all() and (given >= 1).all() and (np.diff(given) > 0).all()
    if given.ndim != 1 or not len(given) or not whole:
        rule = "a number of steps of 1 or more, or an ascending list of such steps"
        raise ValueError(f"timesteps is {timesteps}; it should be {rule}")
    return list(range(1, int(given[0]) + 1)) if np.ndim(timesteps) == 0 else [int(step) for step in given]


def _in_unit(dbz: Array, of_dbz: dict[str, Any], metadata: Mapping[str, Any]) -> Array:
    """Return reflectivities in dBZ, whose metadata are `of_dbz`, in the unit and the transform of other metadata."""
    unit, threshold, zero = metadata["unit"], metadata["threshold"], metadata["zerovalue"]
    if unit == "dBZ":
        values, now = dbz, dict(of_dbz)
    else:
        back = conversion.to_rainrate if unit == "mm/h" else conversion.to_raindepth
        values, now = back(dbz, of_dbz)
    if metadata["transform"] is None:
        values = dB_transform(values, now, inverse=True)[0]
        return np.where(values < threshold, zero, values)
    if now["transform"] is None:
        with np.errstate(divide="ignore"):
            values = 10 * np.log10(values)
    return np.where(values < threshold, zero, values)
