"""Metrics of a frame by itself: MSE, MAE, PSNR, SSIM, GDL and, with a network, LPIPS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import mean_absolute_error, mean_squared_error
from torchmetrics.functional.audio import signal_noise_ratio
from torchmetrics.functional.image import peak_signal_noise_ratio

from .lpips import LPIPS, frame_lpips

SSIM_CONVENTIONS: dict[str, dict[str, Any]] = {
    # 7x7 uniform window on values in [0, 1]
    "float": {"data_range": 1.0},
    # the same on bytes, floor(255 x): the official MotionRNN and PredRNN programs
    "uint8": {"data_range": 255},
    # the same on [0, 1] with a range of 2 taken for granted, which inflates it: MIM's and OpenSTL's tables
    "range2": {"data_range": 2.0},
    # 11x11 Gaussian window of sigma 1.5, as where SSIM was first defined
    "gaussian": {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
}
PSNR_CONVENTIONS = ("float", "uint8")  # on the values, or on bytes floor(255 x) with their peak of 255

# Arguments of `FrameMetrics` that give a published program's numbers.
CONVENTIONS: dict[str, dict[str, Any]] = {
    "float": {"ssim": "float", "psnr": "float", "clip": True},
    "official": {"ssim": "uint8", "psnr": "uint8", "clip": True},
    "openstl": {"ssim": "range2", "psnr": "float", "clip": False},
}


class FrameMetrics(Metric):
    """Accumulates the metrics over batches of any size (and, as a torchmetrics Metric, over processes).

        metrics = FrameMetrics(n_lead=10)
        for ...:
            metrics.update(prediction, truth)    # (B, L, C, H, W) each
        result = metrics.compute()

    `compute()` gives plain numbers: "mse", "mae", "psnr" and what is asked for of "ssim", "gdl", "lpips", each the
    mean over lead times; "per_lead", the same names with L numbers each; "samples"; "ssim_convention",
    "psnr_convention", "clipped". Ready for JSON, but `psnr` can be infinite.

    Args:
        n_lead: L.
        ssim: a name in `SSIM_CONVENTIONS`, or None to leave SSIM out (half of the time of an update).
        psnr: a name in `PSNR_CONVENTIONS`.
        clip: whether predictions are clipped to [0, 1] before MSE and MAE; before the others they always are.
        gdl: whether GDL is taken.
        lpips: a network of `load_lpips`, or None to leave LPIPS out.

    Raises:
        ValueError: a bad argument; an update with other shapes, or with frames smaller than SSIM's window or than
            LPIPS can take; a compute before any update.
    """

    full_state_update = False
    totals: Tensor  # (metric, L) float64, sums over samples
    samples: Tensor

    def __init__(
        self,
        n_lead: int,
        ssim: str | None = "float",
        *,
        psnr: str = "float",
        clip: bool = True,
        gdl: bool = False,
        lpips: LPIPS | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(n_lead, int) or n_lead < 1:
            raise ValueError(f"n_lead must be a positive integer; got {n_lead!r}")
        if ssim is not None and ssim not in SSIM_CONVENTIONS:
            raise ValueError(f"ssim must be None or one of {', '.join(SSIM_CONVENTIONS)}; got {ssim!r}")
        if psnr not in PSNR_CONVENTIONS:
            raise ValueError(f"psnr must be one of {', '.join(PSNR_CONVENTIONS)}; got {psnr!r}")
        self.n_lead, self.ssim, self.psnr, self.clip, self.gdl = n_lead, ssim, psnr, clip, gdl
        self.lpips = lpips
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
        self.add_state("samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        check_shapes(prediction, truth, self.n_lead)
        raw, truth = prediction.detach(), truth.detach()
        clipped = raw.clamp(0, 1)
        summed = clipped if self.clip else raw
        frames = [frame_mse(summed, truth), frame_mae(summed, truth), frame_psnr(clipped, truth, self.psnr)]
        if self.ssim:
            frames.append(frame_ssim(clipped, truth, self.ssim))
        if self.gdl:
            frames.append(frame_gdl(clipped, truth))
        if self.lpips is not None:
            frames.append(frame_lpips(clipped, truth, self.lpips))
        self.totals += torch.stack([values.to(self.totals).sum(0) for values in frames])
        self.samples += len(prediction)

    def compute(self) -> dict[str, Any]:
        if not self.samples:
            raise ValueError("there is nothing to average: call update before compute")
        per_lead = dict(zip(self.names, (self.totals / self.samples).tolist()))
        means = {name: sum(values) / self.n_lead for name, values in per_lead.items()}
        how = {"ssim_convention": self.ssim, "psnr_convention": self.psnr, "clipped": self.clip}
        return {**means, "per_lead": per_lead, "samples": int(self.samples), **how}


def check_shapes(prediction: Tensor, truth: Tensor, n_lead: int) -> None:
    if prediction.ndim != 5 or prediction.shape != truth.shape or prediction.shape[1] != n_lead:
        shapes = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
        raise ValueError(f"prediction and truth must both be (B, {n_lead}, C, H, W); got {shapes}")


def frame_mse(prediction: Tensor, truth: Tensor) -> Tensor:
    """(B, L, C, H, W) -> (B, L), the sum over each frame; nothing is clipped here."""
    return _frame_sums(mean_squared_error, prediction, truth)


def frame_mae(prediction: Tensor, truth: Tensor) -> Tensor:
    """(B, L, C, H, W) -> (B, L), the sum over each frame; nothing is clipped here."""
    return _frame_sums(mean_absolute_error, prediction, truth)


def _frame_sums(mean_error: Any, prediction: Tensor, truth: Tensor) -> Tensor:
    b, n_lead = prediction.shape[:2]
    # torchmetrics averages over rows and keeps columns: a column per frame
    columns = [_at_least_float(frames).reshape(b * n_lead, -1).T for frames in (prediction, truth)]
    return (mean_error(*columns, num_outputs=b * n_lead) * len(columns[0])).view(b, n_lead)


def frame_psnr(prediction: Tensor, truth: Tensor, convention: str = "float") -> Tensor:
    """(B, L, C, H, W) -> (B, L), in dB for values in [0, 1]; "uint8" clips and truncates both to bytes first."""
    if convention == "uint8":
        prediction, truth = (to_bytes(frames) for frames in (prediction, truth))
    prediction, truth = _at_least_float(prediction), _at_least_float(truth)
    peak = 255.0 if convention == "uint8" else 1.0
    return peak_signal_noise_ratio(prediction, truth, data_range=peak, reduction="none", dim=(2, 3, 4))


def frame_snr(prediction: Tensor, truth: Tensor) -> Tensor:
    """(B, L, C, H, W) -> (B, L): 10 log10(sum Y^2 / sum (Y - P)^2) in dB."""
    guess, fact = (_at_least_float(frames).flatten(2) for frames in (prediction, truth))
    return signal_noise_ratio(guess, fact)


def frame_ssim(prediction: Tensor, truth: Tensor, convention: str = "float") -> Tensor:
    """(B, L, C, H, W) in [0, 1] -> (B, L), float64 on the CPU, the mean over channels."""
    from skimage.metrics import structural_similarity

    window, size = 11 if convention == "gaussian" else 7, tuple(prediction.shape[-2:])
    if min(size) < window:
        raise ValueError(f"SSIM {convention!r} needs frames of at least {window}x{window}; got {size}")
    images = [frames.cpu().flatten(0, 1) for frames in (prediction, truth)]  # (B*L, C, H, W)
    images = [to_bytes(frames) if convention == "uint8" else frames.double() for frames in images]
    pairs = zip(*(frames.numpy() for frames in images))
    options = SSIM_CONVENTIONS[convention]
    values = [structural_similarity(truth, guess, channel_axis=0, **options) for guess, truth in pairs]
    return torch.tensor(values, dtype=torch.float64).view(prediction.shape[:2])


def frame_gdl(prediction: Tensor, truth: Tensor) -> Tensor:
    """(B, L, C, H, W) -> (B, L), the gradient difference loss with exponent 1, the sum over each frame.

    GDL = sum_ij ||Y_ij - Y_{i-1,j}| - |P_ij - P_{i-1,j}|| + ||Y_ij - Y_{i,j-1}| - |P_ij - P_{i,j-1}||
    """
    prediction, truth = _at_least_float(prediction), _at_least_float(truth)
    edges = (truth.diff(dim=axis).abs() - prediction.diff(dim=axis).abs() for axis in (-2, -1))
    return torch.stack([edge.abs().sum((2, 3, 4)) for edge in edges]).sum(0)


def openstl_metrics(prediction: Tensor, truth: Tensor, *, spatial_norm: bool = False) -> dict[str, float]:
    """The report of OpenSTL on a whole test set, (B, L, C, H, W) each: mse, mae, rmse, ssim, psnr, snr.

    MSE and MAE are of predictions that are not clipped; `spatial_norm` divides them by C*H*W. RMSE is the root of
    that mean MSE. SSIM ("range2"), PSNR and SNR are means over frames of predictions clipped to [0, 1].
    """
    size = prediction[0, 0].numel() if spatial_norm else 1
    mse, mae = (error(prediction, truth).mean() / size for error in (frame_mse, frame_mae))
    clipped = prediction.clamp(0, 1)
    report = {
        "mse": mse,
        "mae": mae,
        "rmse": mse.sqrt(),
        "ssim": frame_ssim(clipped, truth, "range2").mean(),
        "psnr": frame_psnr(clipped, truth).mean(),
        "snr": frame_snr(clipped, truth).mean(),
    }
    return {name: float(value) for name, value in report.items()}


def to_bytes(frames: Tensor) -> Tensor:
    """floor(255 x) of x clipped to [0, 1], nan as 0; what is uint8 already stays."""
    if frames.dtype == torch.uint8:
        return frames
    return (_at_least_float(frames).nan_to_num(0).clamp(0, 1) * 255).to(torch.uint8)


def _at_least_float(frames: Tensor) -> Tensor:
    return frames if frames.dtype == torch.float64 else frames.float()


def repeat_last_frame(frames: Tensor, n_input: int) -> Tensor:
    """The baseline that predicts no change: (B, T, C, H, W) -> (B, T - n_input, C, H, W), the last input."""
    if frames.ndim != 5 or not 1 <= n_input < frames.shape[1]:
        shape = tuple(frames.shape)
        raise ValueError(
            f"frames must be (B, T, C, H, W) with 1 <= n_input < T; got {shape}, n_input {n_input}"
        )
    return frames[:, n_input - 1 : n_input].expand(-1, frames.shape[1] - n_input, -1, -1, -1)
