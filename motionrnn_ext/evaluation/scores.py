"""Scores of models on clips, beside a baseline, and the motion that a model reads and predicts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..caller import stacklevel_of_user
from ..data.registry import ClipDataset
from ..layers import MotionState
from ..metrics import Meter, Protocol
from ..models import MotionRNN
from ..models.ensembles import NOISE
from ..pixels import as_floats, check_range, filled, in_unit_range
from ..training.runs import RunError
from . import baselines
from .baselines import BASELINE
from .clips import in_rgb

__all__ = ["BASELINE", "motion_states", "motion_trends", "on_device", "predict_clips", "score"]


def on_device(model: MotionRNN, device: str) -> MotionRNN:
    """Return the model, moved to a device. Raise a RunError if the device is unknown or absent."""
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no numbers")
        return model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # Torch raises all three, depending on the kind of device.
        raise RunError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


def predict_clips(
    model: MotionRNN,
    frames: Tensor,
    n_future: int,
    seed: int = 0,
    *,
    clamp: bool = True,
    **ensemble: Any,
) -> Tensor:
    """Predict the frames that follow (B, T, C, H, W); return (B, n_future, C, H, W).

    Frames in uint8 are scaled to [0, 1]; the model reads missing values (nan) as 0. A RuntimeWarning is given if
    predictions are not finite.

    Args:
        seed: seeds the initial states where the model draws them at random, and the noise of an ensemble.
        clamp: clamp the predictions to [0, 1].
        ensemble: `members` and `noise` of `MotionRNN.predict`; with members it returns (B, N, n_future, C, H, W).

    Raises:
        ValueError: frames lie outside [0, 1] by more than rounding.
    """
    check_range(frames)
    # A model with compat="openstl" would carry over its state from the clips before.
    model.reset()
    generator = torch.Generator(frames.device).manual_seed(seed)
    frames = filled(frames if frames.is_floating_point() else as_floats(frames))
    future = model.predict(frames, n_future, generator=generator, **ensemble)
    if not future.isfinite().all():
        text = "predictions have values that are nan or infinite; are the model's weights finite?"
        warnings.warn(text, RuntimeWarning, stacklevel=stacklevel_of_user())
    return future.clamp(0, 1) if clamp else future


def score(
    models: Mapping[str, MotionRNN],
    clips: ClipDataset,
    n_input: int,
    *,
    protocol: Protocol | None = None,
    batch_size: int = 16,
    colours: str = "grey",
    per_clip: bool = False,
    with_baselines: bool = True,
    members: int | None = None,
    noise: float = NOISE,
) -> dict[str, dict[str, Any]]:
    """Return the results of `Meter.compute` on all clips, by label: first those of `baselines`, then each model's.

    Those of a baseline have "baseline": True. `colours` is the order of the clips' channels, as in `DataSet`. With
    `per_clip` the results hold the scores of every clip, see `Meter`. With `members` each model also predicts an
    ensemble with `noise`, and the results hold its scores; a baseline is an ensemble of one.

    Raises:
        RunError: there are no clips, or none has a frame after the first `n_input`.
        ValueError: batch_size is below 1.
    """
    if not len(clips):
        raise RunError("there are no clips to score; one or more are needed")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    if not 1 <= n_input < len(clips[0]):
        raise RunError(
            f"n_input must be from 1 to {len(clips[0]) - 1}, as clips have {len(clips[0])} frames; got {n_input}"
        )
    n_future = len(clips[0]) - n_input
    labels = baselines.names(n_input) if with_baselines else ()
    meters = {label: Meter(n_future, protocol, per_clip=per_clip) for label in (*labels, *models)}
    devices = {label: next(model.parameters()).device for label, model in models.items()}
    for start in range(0, len(clips), batch_size):
        indices = range(start, min(start + batch_size, len(clips)))
        frames = torch.stack([in_unit_range(clips[i], f"the frames of clip {i}") for i in indices])
        given, truth = frames[:, :n_input], frames[:, n_input:]
        futures = baselines.predictions(frames, n_input) if with_baselines else {}
        for label, model in models.items():
            future = predict_clips(model, given.to(devices[label]), n_future, seed=start, clamp=False)
            futures[label] = future.cpu()
        if members is not None:
            ensembles = {label: futures[label][:, None] for label in labels}
            for label, model in models.items():
                how: Any = {"seed": start, "members": members, "noise": noise}
                ensembles[label] = predict_clips(model, given.to(devices[label]), n_future, **how).cpu()
            for label, ensemble in ensembles.items():
                meters[label].update_ensemble(ensemble, truth, noise)
        for label, future in futures.items():
            # LPIPS and FVD expect red first.
            meters[label].update(*(in_rgb(part, colours) for part in (future, truth, given)))
    results = {label: meter.compute() for label, meter in meters.items()}
    for label, result in results.items():
        result["protocol"]["baselines"] = baselines.about(n_input)
        if label in labels:
            result["baseline"] = True
    return results


@torch.no_grad()
def motion_states(model: MotionRNN, given: Tensor, future: Tensor, seed: int = 0) -> dict[str, MotionState]:
    """Return the offset and trend of each MotionGRU, (T-1, 2K, h', w') each, after each frame that the model reads.

    The model reads the `given` frames (T_in, C, H, W), then its own `future` from `predict_clips`. Keys are
    "MotionGRU 1", "MotionGRU 2" and so on. If a MotionGRU's maps have a depth, the newest slice is returned.
    """
    model.reset()
    frames = filled(torch.cat([given if given.is_floating_point() else as_floats(given), future]))[None]
    generator = torch.Generator(frames.device).manual_seed(seed)
    _, motion = model(frames, len(given), return_motion=True, generator=generator)

    def of_clip(motion: Tensor) -> Tensor:  # (1, T-1, 2K, h', w') or (1, T-1, W, 2K, h', w')
        return motion[0] if motion.dim() == 5 else motion[0, :, -1]

    return {
        f"MotionGRU {level}": MotionState(*map(of_clip, state)) for level, state in enumerate(motion, start=1)
    }


def motion_trends(model: MotionRNN, given: Tensor, future: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Return the trends of `motion_states`."""
    return {name: state.trend for name, state in motion_states(model, given, future, seed).items()}
