"""Metrics of single frames: MSE, MAE, PSNR, SSIM, GDL and, with a network, LPIPS.

True frames are floats in [0, 1] or uint8; a ValueError names any other range. Predictions are floats of any value, or
uint8. nan in a true frame marks a missing value, which is left out (see `motionrnn_ext.metrics`). nan in a prediction
makes the score nan.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d
from torchmetrics import Metric
from torchmetrics.functional import mean_absolute_error, mean_squared_error
from torchmetrics.functional.audio import signal_noise_ratio
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.utilities import dim_zero_cat

from ..layers.arguments import is_whole
from ..pixels import as_floats, check_range, check_units, filled, in_unit_range
from .lpips import LPIPS, frame_lpips

SSIM_CONVENTIONS: dict[str, dict[str, Any]] = {
    # A 7x7 uniform window on values in [0, 1].
    "float": {"data_range": 1.0},
    # The same on bytes floor(255 x): the official MotionRNN and PredRNN programs.
    "uint8": {"data_range": 255},
    # The same on [0, 1] with an assumed data range of 2, which inflates SSIM: MIM's and OpenSTL's tables.
    "range2": {"data_range": 2.0},
    # An 11x11 Gaussian window of sigma 1.5, as in the paper that defines SSIM.
    "gaussian": {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
}
# PSNR of the values, or of bytes floor(255 x) with a peak of 255.
PSNR_CONVENTIONS = ("float", "uint8")

# The arguments with which `FrameMetrics` gives a published program's numbers.
CONVENTIONS: dict[str, dict[str, Any]] = {
    "float": {"ssim": "float", "psnr": "float", "clip": True},
    "official": {"ssim": "uint8", "psnr": "uint8", "clip": True},
    "openstl": {"ssim": "range2", "psnr": "float", "clip": False},
}


class FrameMetrics(Metric):
    """A torchmetrics Metric that accumulates the metrics of frames over batches of any size and over processes.

        metrics = FrameMetrics(n_lead=10)
        for ...:
            metrics.update(prediction, truth)    # (B, L, C, H, W) each
        result = metrics.compute()

    `compute()` returns plain numbers: "mse", "mae", "psnr" and, if asked for, "ssim", "gdl", "lpips", each the mean
    over lead times; "per_lead", the same names with L numbers each; "samples", their number; "missing", the share of
    true values that are missing; "ssim_convention", "psnr_convention", "clipped". They are ready for JSON, except that
    "psnr" can be infinite, and a metric without any known value is nan. With `per_clip` there is "per_clip", the same
    names with N numbers each: every clip's mean over lead times, nan if it has nothing to score.

    Args:
        n_lead: L, the number of lead times.
        ssim: a name in `SSIM_CONVENTIONS`, or None to leave SSIM out, which takes half of the time of an update.
        psnr: a name in `PSNR_CONVENTIONS`.
        clip: whether predictions are clipped to [0, 1] for MSE and MAE. For the other metrics they always are.
        gdl: whether to compute GDL.
        lpips: a network of `load_lpips`, or None to leave LPIPS out.
        per_clip: whether to keep the scores of every clip.

    Raises:
        ValueError: a bad argument; an update with other shapes, with true frames outside of [0, 1], or with frames
            smaller than SSIM's window or than LPIPS can take; a compute before any update.
        TypeError: an update gets no tensors.
    """

    full_state_update = False
    # (metric, L) float64: sums over samples.
    totals: Tensor
    # (metric, L) int64: the samples whose frame has no value that this metric can use.
    left_out: Tensor
    samples: Tensor
    # (metric, B) float64 for every batch: the scores of its clips, if they are kept.
    clips: list[Tensor]
    # (2,) int64: the missing true values, and all true values.
    n_values: Tensor

    def __init__(
        self,
        n_lead: int,
        ssim: str | None = "float",
        *,
        psnr: str = "float",
        clip: bool = True,
        gdl: bool = False,
        lpips: LPIPS | None = None,
        per_clip: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not is_whole(n_lead) or n_lead < 1:
            raise ValueError(f"n_lead must be a positive integer; got {n_lead!r}")
        if ssim is not None and ssim not in SSIM_CONVENTIONS:
            raise ValueError(f"ssim must be None or one of {', '.join(SSIM_CONVENTIONS)}; got {ssim!r}")
        if psnr not in PSNR_CONVENTIONS:
            raise ValueError(f"psnr must be one of {', '.join(PSNR_CONVENTIONS)}; got {psnr!r}")
        self.n_lead, self.ssim, self.psnr, self.clip, self.gdl = int(n_lead), ssim, psnr, clip, gdl
        self.lpips, self.per_clip = lpips, per_clip
        wanted = {
            "mse": True,
            "mae": True,
            "psnr": True,
            "ssim": ssim,
            "gdl": gdl,
            "lpips": lpips is not None,
        }
        self.names = tuple(name for name, is_wanted in wanted.items() if is_wanted)
        totals = torch.zeros(len(self.names), n_lead, dtype=torch.float64)
        self.add_state("totals", totals, dist_reduce_fx="sum")
        self.add_state("left_out", torch.zeros_like(totals, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("n_values", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        if per_clip:
            self.add_state("clips", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add a batch: (B, L, C, H, W) each, floats or uint8."""
        check_shapes(prediction, truth, self.n_lead)
        if not len(prediction):
            return
        prediction, truth = prediction.detach(), truth.detach()
        check_range(truth, "true frames")
        check_units(prediction)
        prediction, clipped = _with_clipped(prediction)
        summed = clipped if self.clip else prediction
        frames = [frame_mse(summed, truth), frame_mae(summed, truth), frame_psnr(clipped, truth, self.psnr)]
        if self.ssim:
            frames.append(frame_ssim(clipped, truth, self.ssim))
        if self.gdl:
            frames.append(frame_gdl(clipped, truth))
        if self.lpips is not None:
            frames.append(frame_lpips(clipped, truth, self.lpips))
        scores = torch.stack([values.to(self.totals) for values in frames])  # (metric, B, L)
        unknown = _unknown(scores, prediction, truth)
        self.left_out += unknown.sum(1)
        self.totals += scores.masked_fill(unknown, 0).sum(1)
        if self.per_clip:
            self.clips.append((scores.masked_fill(unknown, 0).sum(-1) / (~unknown).sum(-1)).T)
        self.samples += len(prediction)
        self.n_values += torch.tensor([int(truth.isnan().sum()), truth.numel()]).to(self.n_values)

    def compute(self) -> dict[str, Any]:
        """Return the metrics of all batches, see the class."""
        if not self.samples:
            raise ValueError("there is nothing to average: call update before compute")
        n_scores = self.samples - self.left_out
        per_lead = dict(zip(self.names, (self.totals / n_scores).tolist()))
        known = dict(zip(self.names, (n_scores > 0).tolist()))
        means = {name: _mean_over_lead_times(values, known[name]) for name, values in per_lead.items()}
        n_missing, n_values = self.n_values.tolist()
        how = {"ssim_convention": self.ssim, "psnr_convention": self.psnr, "clipped": self.clip}
        about = {"samples": int(self.samples), "missing": n_missing / n_values if n_values else 0.0}
        result = {**means, "per_lead": per_lead, **about, **how}
        if self.per_clip:
            result["per_clip"] = dict(zip(self.names, dim_zero_cat(self.clips).T.tolist()))
        return result


def _with_clipped(prediction: Tensor) -> tuple[Tensor, Tensor]:
    """Return predictions as floats, and clipped to [0, 1]; uint8 stays uint8 in both."""
    if prediction.dtype == torch.uint8:
        return prediction, prediction
    prediction = as_floats(prediction, "predictions")
    return prediction, prediction.clamp(0, 1)


def _unknown(scores: Tensor, prediction: Tensor, truth: Tensor) -> Tensor:
    """Return which scores (..., B, L) of frames (B, L, C, H, W) are nan because true values are missing."""
    missing = truth.isnan()
    is_finite = (prediction.isfinite() | missing).flatten(2).all(-1) & missing.flatten(2).any(-1)
    return scores.isnan() & is_finite.to(scores.device)


def _mean_over_lead_times(values: list[float], known: list[bool]) -> float:
    """Return the mean over lead times with a scored frame, or nan if there is none."""
    found = [value for value, is_known in zip(values, known) if is_known]
    return sum(found) / len(found) if found else math.nan


def check_shapes(prediction: Tensor, truth: Tensor, n_lead: int | None = None) -> None:
    """Raise a TypeError or ValueError unless both are tensors of one shape (B, L, C, H, W); L is `n_lead` if given."""
    for name, frames in {"prediction": prediction, "truth": truth}.items():
        if not isinstance(frames, Tensor):
            raise TypeError(f"{name} is a {type(frames).__name__}; it should be a torch.Tensor")
    fits = prediction.ndim == 5 and prediction.shape == truth.shape
    if not fits or n_lead not in (None, prediction.shape[1]):
        shapes = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
        wanted = f"(B, {'L' if n_lead is None else n_lead}, C, H, W)"
        raise ValueError(f"prediction and truth must both be {wanted}; got {shapes}")


def frame_mse(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the squared error, summed over each frame, without clipping: (B, L, C, H, W) -> (B, L)."""
    return _frame_sums(mean_squared_error, prediction, truth)


def frame_mae(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the absolute error, summed over each frame, without clipping: (B, L, C, H, W) -> (B, L)."""
    return _frame_sums(mean_absolute_error, prediction, truth)


def _frame_sums(mean_error: Any, prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the errors (B, L), summed over each frame; missing values count as the mean of the known ones."""
    prediction, truth, missing = _known(prediction, truth)
    b, n_lead = prediction.shape[:2]
    # torchmetrics averages over the first axis, so that each frame becomes a column.
    columns = [frames.flatten(2).flatten(0, 1).T for frames in (prediction, truth)]
    sums = (mean_error(*columns, num_outputs=b * n_lead) * len(columns[0])).view(b, n_lead)
    return sums if missing is None else sums * _times(missing)


def frame_psnr(prediction: Tensor, truth: Tensor, convention: str = "float") -> Tensor:
    """Return the PSNR of each frame in dB: (B, L, C, H, W) -> (B, L), infinite for equal frames.

    The convention is "float" for values in [0, 1], or "uint8", which first clips both and truncates them to bytes.
    """
    in_bytes = convention == "uint8"
    prediction, truth, missing = _known(prediction, truth, in_bytes)
    peak = 255.0 if in_bytes else 1.0
    psnr: Tensor = peak_signal_noise_ratio(
        prediction, truth, data_range=peak, reduction="none", dim=(2, 3, 4)
    )
    return psnr if missing is None else psnr - 10 * _times(missing).log10()


def frame_snr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the SNR of each frame, 10 log10(sum Y^2 / sum (Y - P)^2), in dB: (B, L, C, H, W) -> (B, L)."""
    guess, fact, missing = _known(prediction, truth)
    snr = signal_noise_ratio(guess.flatten(2), fact.flatten(2))
    return snr if missing is None else snr.masked_fill(missing.flatten(2).all(-1), math.nan)


def frame_ssim(prediction: Tensor, truth: Tensor, convention: str = "float") -> Tensor:
    """Return the SSIM of each frame, the mean over channels and windows: (B, L, C, H, W) -> (B, L), float64 on the CPU.

    In a frame with missing values it is the mean over the windows without one.

    Args:
        prediction: floats in [0, 1] or uint8.
        truth: floats in [0, 1] or uint8.
        convention: a name in `SSIM_CONVENTIONS`.

    Raises:
        ValueError: the frames are smaller than the window, or true frames leave [0, 1].
    """
    from skimage.metrics import structural_similarity

    check_shapes(prediction, truth)
    window, size = 11 if convention == "gaussian" else 7, tuple(prediction.shape[-2:])
    if min(size) < window:
        raise ValueError(f"SSIM {convention!r} needs frames of at least {window}x{window}; got {size}")
    guesses, facts, missing = _known(prediction.cpu(), truth.cpu(), convention == "uint8")
    options = SSIM_CONVENTIONS[convention]
    dtype = torch.uint8 if convention == "uint8" else torch.float64
    is_nan = guesses.isnan().flatten(2).any(-1)
    pairs = zip(*(frames.nan_to_num(0).flatten(0, 1).to(dtype).numpy() for frames in (guesses, facts)))
    if missing is None:
        values = [structural_similarity(truth, guess, channel_axis=0, **options) for guess, truth in pairs]
        return torch.tensor(values, dtype=torch.float64).view(is_nan.shape).masked_fill(is_nan, math.nan)
    maps = [
        structural_similarity(truth, guess, channel_axis=0, full=True, **options)[1] for guess, truth in pairs
    ]
    half = window // 2
    inner = torch.from_numpy(np.stack(maps))[..., half : size[0] - half, half : size[1] - half]
    touched = max_pool2d(missing.flatten(0, 1).float(), window, stride=1) > 0  # (B*L, C, H', W')
    sums = inner.masked_fill(touched, 0).double().sum((1, 2, 3))
    return (sums / (~touched).sum((1, 2, 3))).view(is_nan.shape).masked_fill(is_nan, math.nan)


def frame_gdl(prediction: Tensor, truth: Tensor) -> Tensor:
    """Return the gradient difference loss with exponent 1, summed over each frame: (B, L, C, H, W) -> (B, L).

    GDL = sum_ij ||Y_ij - Y_{i-1,j}| - |P_ij - P_{i-1,j}|| + ||Y_ij - Y_{i,j-1}| - |P_ij - P_{i,j-1}||

    In a frame with missing values it is the mean over pairs of known neighbours, times the number of all pairs.
    """
    check_shapes(prediction, truth)
    prediction, truth = as_floats(prediction, "predictions"), in_unit_range(truth, "true frames")
    check_units(prediction)
    edges = [(truth.diff(dim=axis).abs() - prediction.diff(dim=axis).abs()).abs() for axis in (-2, -1)]
    missing = [truth.diff(dim=axis).isnan() for axis in (-2, -1)]
    if not any(pairs.any() for pairs in missing):
        return torch.stack([edge.sum((2, 3, 4)) for edge in edges]).sum(0)
    sums = sum(edge.masked_fill(pairs, 0).sum((2, 3, 4)) for edge, pairs in zip(edges, missing))
    return sums * _times(torch.cat([pairs.flatten(2) for pairs in missing], -1))


def _known(prediction: Tensor, truth: Tensor, in_bytes: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return both frames as floats with 0 where true values are missing, and a mask of those values.

    The floats are in [0, 1], or 0 to 255 with `in_bytes`. The mask is None if nothing is missing.
    """
    check_shapes(prediction, truth)
    check_range(truth, "true frames")
    check_units(prediction)
    missing = truth.isnan()
    if not missing.any():
        return *(_floats(frames, in_bytes) for frames in (prediction, truth)), None  # type: ignore[return-value]
    if prediction.dtype == torch.uint8:
        prediction = as_floats(prediction)
    both = (prediction.masked_fill(missing, 0), truth.masked_fill(missing, 0))
    return *(_floats(frames, in_bytes) for frames in both), missing  # type: ignore[return-value]


def _floats(frames: Tensor, in_bytes: bool) -> Tensor:
    """Return frames as floats, truncated to bytes with `in_bytes`; nan stays nan."""
    floats = as_floats(frames, "predictions")
    return to_bytes(frames).float().masked_fill(floats.isnan(), math.nan) if in_bytes else floats


def _times(missing: Tensor) -> Tensor:
    """Return the number of all values over that of known ones in each frame: (B, L, ...) -> (B, L).

    It is infinite if a frame has no known value, so that 0 times it is nan.
    """
    missing = missing.flatten(2)
    return missing.shape[-1] / (~missing).sum(-1)


def openstl_metrics(prediction: Tensor, truth: Tensor, *, spatial_norm: bool = False) -> dict[str, float]:
    """Return OpenSTL's report on a whole test set: mse, mae, rmse, ssim, psnr, snr.

    MSE and MAE use predictions without clipping. RMSE is the root of the mean MSE. SSIM ("range2"), PSNR and SNR are
    means over frames of predictions clipped to [0, 1]. Frames without anything to score are left out.

    Args:
        prediction: (B, L, C, H, W), floats or uint8.
        truth: (B, L, C, H, W), floats in [0, 1] or uint8.
        spatial_norm: whether MSE and MAE are divided by C*H*W.

    Raises:
        ValueError: there is no frame, true frames leave [0, 1], or frames are smaller than SSIM's window.
    """
    check_shapes(prediction, truth)
    if not prediction.numel():
        raise ValueError(f"there is nothing to average: frames have shape {tuple(prediction.shape)}")
    size = prediction[0, 0].numel() if spatial_norm else 1
    prediction, clipped = _with_clipped(prediction)

    def mean(scores: Tensor) -> Tensor:
        return scores[~_unknown(scores, prediction, truth)].mean()

    mse, mae = (mean(error(prediction, truth)) / size for error in (frame_mse, frame_mae))
    report = {
        "mse": mse,
        "mae": mae,
        "rmse": mse.sqrt(),
        "ssim": mean(frame_ssim(clipped, truth, "range2")),
        "psnr": mean(frame_psnr(clipped, truth)),
        "snr": mean(frame_snr(clipped, truth)),
    }
    return {name: float(value) for name, value in report.items()}


def to_bytes(frames: Tensor) -> Tensor:
    """Return floor(255 x) of x clipped to [0, 1] as uint8, nan as 0; uint8 frames are returned as they are."""
    if frames.dtype == torch.uint8:
        return frames
    return (as_floats(frames).nan_to_num(0).clamp(0, 1) * 255).to(torch.uint8)


def repeat_last_frame(frames: Tensor, n_input: int) -> Tensor:
    """Return the baseline that predicts no change: the last given frame, repeated.

    Args:
        frames: (B, T, C, H, W), inputs and targets.
        n_input: the number of given frames, from 1 to T - 1.

    Returns:
        (B, T - n_input, C, H, W), with 0 where the last given frame has a missing value.

    Raises:
        ValueError: another shape, or `n_input` out of its range.
    """
    if frames.ndim != 5 or not 1 <= n_input < frames.shape[1]:
        shape = tuple(frames.shape)
        raise ValueError(
            f"frames must be (B, T, C, H, W) with 1 <= n_input < T; got {shape}, n_input {n_input}"
        )
    return filled(frames[:, n_input - 1 : n_input]).expand(-1, frames.shape[1] - n_input, -1, -1, -1)
