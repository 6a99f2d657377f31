"""Metrics of predicted frames, per lead time and averaged.

Notation: B samples, L lead times, C channels, H, W frame size; Y a true frame and P a predicted one. Both are floats in
[0, 1] or uint8, which is divided by 255. A value of Y outside of this range is an error. P may leave it; the
conventions below state when it is clipped. Each metric is computed for every frame and averaged over samples for each
lead time. The headline number is the mean over lead times.

    MSE    sum over pixels and channels of (Y - P)^2: the sum over a frame, as in the tables of the field
    MAE    sum over pixels and channels of |Y - P|
    PSNR   10 log10(1 / mean (Y - P)^2) in dB, infinite if the frames are equal
    SSIM   by one of `SSIM_CONVENTIONS`
    GDL    sum over pixels and channels of ||dY| - |dP||, d the difference of neighbours in a column, then in a row
    CSI    TP / (TP + FP + FN) of the pixels whose value reaches a threshold, see `events`; so are POD, FAR, HSS, bias
    FSS    of the shares of those pixels in windows, see `fractions`
    CRPS   of ensembles, with spread, skill and rank histogram, see `ensembles`
    LPIPS  distance of AlexNet's features, with weights that the user names, see `lpips`
    FVD    Frechet distance of a video network's features, with a network that the user names, see `fvd`

A true value that is nan is missing, and no metric counts it. MSE and MAE are then means over the known values times
the number of values in a frame, so that frames with and without missing values compare; GDL does the same with pairs of
neighbours. PSNR uses the mean squared error of the known values, SSIM is the mean over windows without a missing value,
scores of events count known values alone, and LPIPS and FVD replace missing values by 0 in both clips. A frame without
anything to score is left out of the mean over samples, and a lead time without any scored frame is left out of the mean
over lead times. If nothing is missing, every number is as published.

Programs compute their published numbers differently, so numbers compare only within one convention:

    `CONVENTIONS`      "float" (ours)         "official"                     "openstl"
    program            -                      MotionRNN, PredRNN trainers    OpenSTL
    MSE, MAE           P clipped to [0, 1]    P clipped (they have no MAE)   P not clipped
    PSNR               floats                 bytes floor(255 P), 255 Y      floats
    SSIM               "float"                "uint8"                        "range2"
    GDL, LPIPS         P clipped              (none published)               (no GDL; LPIPS as here)
    CSI, FAR           "pooled"               "per_batch", values "echo"     -
    computed by        `FrameMetrics(n, **CONVENTIONS[name])` and `EventMetrics`; for OpenSTL's report `openstl_metrics`

MIM's tables use the official MSE and PSNR, SSIM "range2", and MAE without clipping.

torchmetrics computes MSE, MAE, PSNR and SNR, and scikit-image computes SSIM.
"""

from .contingency import csi, far, frequency_bias, hss, pod
from .ensembles import EnsembleMetrics, pixel_crps
from .events import PRESET_THRESHOLDS, PRESETS, EventMetrics, Values, event_counts
from .fractions import FSS_SCALES, event_fractions, fss
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
from .reflectivity import dbz_to_rain, named_threshold, rain_to_dbz
from .tables import BETTER, EVENTS, LABELS, counted, heading, plain_table, table_rows

__all__ = [
    "BETTER",
    "CONVENTIONS",
    "EVENTS",
    "FSS_SCALES",
    "FVD",
    "LABELS",
    "LPIPS",
    "PRESETS",
    "PRESET_THRESHOLDS",
    "PSNR_CONVENTIONS",
    "SSIM_CONVENTIONS",
    "EnsembleMetrics",
    "EventMetrics",
    "FrameMetrics",
    "Meter",
    "Protocol",
    "Values",
    "counted",
    "csi",
    "dbz_to_rain",
    "event_counts",
    "event_fractions",
    "far",
    "frame_gdl",
    "frame_lpips",
    "frame_mae",
    "frame_mse",
    "frame_psnr",
    "frame_snr",
    "frame_ssim",
    "frechet_distance",
    "frequency_bias",
    "fss",
    "heading",
    "hss",
    "load_lpips",
    "load_video_network",
    "named_threshold",
    "openstl_metrics",
    "pixel_crps",
    "plain_table",
    "pod",
    "rain_to_dbz",
    "repeat_last_frame",
    "table_rows",
]
