"""Metrics of predicted frames, per lead time and averaged.

Notation: B samples, L lead times, C channels, H, W frame size; Y a true frame and P a predicted one, clipped to
[0, 1] before every metric. Each metric is taken frame by frame and averaged over samples for each lead time; the
headline number is the mean over lead times.

    MSE    sum over pixels and channels of (Y - P)^2: the sum over a frame, as in the tables of the field
    MAE    sum over pixels and channels of |Y - P|
    PSNR   10 log10(1 / mean (Y - P)^2) in dB, infinite where the frames are equal
    SSIM   by one of `SSIM_CONVENTIONS`: published numbers differ in it and compare only within one

MSE, MAE and PSNR are torchmetrics', SSIM is scikit-image's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import mean_absolute_error, mean_squared_error
from torchmetrics.functional.image import peak_signal_noise_ratio

LABELS = {"mse": "MSE", "mae": "MAE", "psnr": "PSNR", "ssim": "SSIM"}
BETTER = {"mse": "\u2193", "mae": "\u2193", "psnr": "\u2191", "ssim": "\u2191"}  # which way is better

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


class FrameMetrics(Metric):
    """Accumulates the metrics over batches of any size (and, as a torchmetrics Metric, over processes).

        metrics = FrameMetrics(n_lead=10)
        for ...:
            metrics.update(prediction, truth)    # (B, L, C, H, W) each
        result = metrics.compute()

    `compute()` gives plain numbers: "mse", "mae", "psnr", "ssim", each the mean over lead times; "per_lead", the
    same names with L numbers each; "samples"; "ssim_convention". Ready for JSON, but `psnr` can be infinite.

    Args:
        n_lead: L.
        ssim: a name in `SSIM_CONVENTIONS`, or None to leave SSIM out (half of the time of an update).

    Raises:
        ValueError: a bad argument; an update with other shapes, or with frames smaller than SSIM's window; a
            compute before any update.
    """

    full_state_update = False
    totals: Tensor  # (metric, L) float64, sums over samples
    samples: Tensor

    def __init__(self, n_lead: int, ssim: str | None = "float", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(n_lead, int) or n_lead < 1:
            raise ValueError(f"n_lead must be a positive integer; got {n_lead!r}")
        if ssim is not None and ssim not in SSIM_CONVENTIONS:
            raise ValueError(f"ssim must be None or one of {', '.join(SSIM_CONVENTIONS)}; got {ssim!r}")
        self.n_lead, self.ssim = n_lead, ssim
        self.names = ("mse", "mae", "psnr", "ssim") if ssim else ("mse", "mae", "psnr")
        totals = torch.zeros(len(self.names), n_lead, dtype=torch.float64)
        self.add_state("totals", totals, dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        if prediction.ndim != 5 or prediction.shape != truth.shape or prediction.shape[1] != self.n_lead:
            shapes = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
            raise ValueError(f"prediction and truth must both be (B, {self.n_lead}, C, H, W); got {shapes}")
        prediction, truth = prediction.detach().clamp(0, 1), truth.detach()
        frames = [frame_mse(prediction, truth), frame_mae(prediction, truth), frame_psnr(prediction, truth)]
        if self.ssim:
            frames.append(frame_ssim(prediction, truth, self.ssim).to(self.totals.device))
        self.totals += torch.stack([values.double().sum(0) for values in frames])
        self.samples += len(prediction)

    def compute(self) -> dict[str, Any]:
        if not self.samples:
            raise ValueError("there is nothing to average: call update before compute")
        per_lead = dict(zip(self.names, (self.totals / self.samples).tolist()))
        means = {name: sum(values) / self.n_lead for name, values in per_lead.items()}
        return {**means, "per_lead": per_lead, "samples": int(self.samples), "ssim_convention": self.ssim}


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


def frame_psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """(B, L, C, H, W) -> (B, L), in dB for values in [0, 1]."""
    prediction, truth = _at_least_float(prediction), _at_least_float(truth)
    return peak_signal_noise_ratio(prediction, truth, data_range=1.0, reduction="none", dim=(2, 3, 4))


def frame_ssim(prediction: Tensor, truth: Tensor, convention: str = "float") -> Tensor:
    """(B, L, C, H, W) in [0, 1] -> (B, L), float64 on the CPU, the mean over channels."""
    from skimage.metrics import structural_similarity

    window, size = 11 if convention == "gaussian" else 7, tuple(prediction.shape[-2:])
    if min(size) < window:
        raise ValueError(f"SSIM {convention!r} needs frames of at least {window}x{window}; got {size}")
    frames = [_at_least_float(frames.cpu()).flatten(0, 1) for frames in (prediction, truth)]
    if convention == "uint8":
        frames = [(images * 255).to(torch.uint8) for images in frames]
    else:
        frames = [images.double() for images in frames]
    pairs = zip(*(images.numpy() for images in frames))
    options = SSIM_CONVENTIONS[convention]
    values = [structural_similarity(truth, guess, channel_axis=0, **options) for guess, truth in pairs]
    return torch.tensor(values, dtype=torch.float64).view(prediction.shape[:2])


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


def table_rows(
    results: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str] | None = None
) -> list[list[str]]:
    """A header and a row per model, all text, for a rich table or for `plain_table`.

    Args:
        results: label -> what `FrameMetrics.compute` gave, with whatever numbers the caller adds.
        columns: key -> heading; by default the metrics that are there. A missing value reads "-".
    """
    if columns is None:
        columns = {key: label for key, label in LABELS.items() if any(key in row for row in results.values())}
    rows = [[label, *(_text(row.get(key)) for key in columns)] for label, row in results.items()]
    return [["model", *columns.values()], *rows]


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def plain_table(rows: list[list[str]]) -> str:
    """Rows as aligned text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        "  ".join(f"{cell:{'>' if i else '<'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in rows
    )
