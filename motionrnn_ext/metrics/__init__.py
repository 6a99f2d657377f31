"""Metrics of predicted frames, per lead time and averaged.

Notation: B samples, L lead times, C channels, H, W frame size; Y a true frame and P a predicted one, in [0, 1] (or both
or either uint8, of 255). Y elsewhere is an error; P may be anywhere, the conventions below say when it is clipped.
Each metric is taken frame by frame and averaged over samples for each lead time; the headline number is the mean
over lead times.

    MSE    sum over pixels and channels of (Y - P)^2: the sum over a frame, as in the tables of the field
    MAE    sum over pixels and channels of |Y - P|
    PSNR   10 log10(1 / mean (Y - P)^2) in dB, infinite where the frames are equal
    SSIM   by one of `SSIM_CONVENTIONS`
    GDL    sum over pixels and channels of ||dY| - |dP||, d the difference of neighbours in a column, then in a row
    CSI    TP / (TP + FP + FN) of the pixels whose value reaches a threshold, see `events`
    FAR    FP / (TP + FP) of the same
    LPIPS  distance of AlexNet's features, with weights that the user names, see `lpips`
    FVD    Frechet distance of a video network's features, with a network that the user names, see `fvd`

A true value that is nan is missing and counts for nothing. Of the others MSE, MAE and GDL are means times what a frame
has of values (GDL: of pairs of neighbours), so that frames with and without compare; PSNR is that of their mean squared
error; SSIM the mean over windows without a missing value; CSI and FAR count them alone; LPIPS and FVD see 0 in both
clips where one is missing. A frame without anything to score is left out of the mean over samples, and a lead time
without such frames out of the mean over lead times. Where nothing is missing every number is as published.

Published numbers differ in how they are computed and compare only within one convention:

    `CONVENTIONS`      "float" (ours)         "official"                     "openstl"
    whose              -                      MotionRNN, PredRNN trainers    OpenSTL
    MSE, MAE           P clipped to [0, 1]    P clipped (they have no MAE)   P not clipped
    PSNR               floats                 bytes floor(255 P), 255 Y      floats
    SSIM               "float"                "uint8"                        "range2"
    GDL, LPIPS         P clipped              (none published)               (no GDL; LPIPS as here)
    CSI, FAR           "pooled"               "per_batch", values "echo"     -
    computed by        `FrameMetrics(n, **CONVENTIONS[name])` and `EventMetrics`; for OpenSTL's report `openstl_metrics`

MIM's tables have the official MSE and PSNR, SSIM "range2", and MAE without clipping.

MSE, MAE, PSNR and SNR are torchmetrics', SSIM is scikit-image's.
"""

from .events import PRESET_THRESHOLDS, PRESETS, EventMetrics, Values, csi, event_counts, far
from .frames import (
    CONVENTIONS,
    PSNR_CONVENTIONS,
    SSIM_CONVENTIONS,
    FrameMetrics,
    frame_gdl,
    frame_mae,
    frame_mse,
    frame_psnr,
    frame_snr,
    frame_ssim,
    openstl_metrics,
    repeat_last_frame,
)
from .fvd import FVD, frechet_distance, load_video_network
from .lpips import LPIPS, frame_lpips, load_lpips
from .protocol import Meter, Protocol
from .tables import BETTER, LABELS, counted, heading, plain_table, table_rows

__all__ = [
    "BETTER",
    "CONVENTIONS",
    "FVD",
    "LABELS",
    "LPIPS",
    "PRESETS",
    "PRESET_THRESHOLDS",
    "PSNR_CONVENTIONS",
    "SSIM_CONVENTIONS",
    "EventMetrics",
    "FrameMetrics",
    "Meter",
    "Protocol",
    "Values",
    "counted",
    "csi",
    "event_counts",
    "far",
    "frame_gdl",
    "frame_lpips",
    "frame_mae",
    "frame_mse",
    "frame_psnr",
    "frame_snr",
    "frame_ssim",
    "frechet_distance",
    "heading",
    "load_lpips",
    "load_video_network",
    "openstl_metrics",
    "plain_table",
    "repeat_last_frame",
    "table_rows",
]
