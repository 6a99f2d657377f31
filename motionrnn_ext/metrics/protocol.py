"""The metrics of frames, events and clips together, chosen by one protocol."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pixels import as_floats, in_unit_range
from .ensembles import EnsembleMetrics
from .events import EventMetrics, Values, checked_thresholds
from .fractions import checked_scales
from .frames import CONVENTIONS, SSIM_CONVENTIONS, FrameMetrics
from .fvd import FVD, load_video_network
from .lpips import LPIPS, load_lpips
from .tables import counted


@dataclass(frozen=True)
class Protocol:
    """The choice of metrics and of their conventions.

    Args:
        convention: a name in `CONVENTIONS`, the program whose MSE, MAE, PSNR and SSIM the numbers compare with.
        ssim: a name in `SSIM_CONVENTIONS`; None takes the convention's.
        thresholds: the thresholds of events, in the unit of `values`; none leaves their scores out.
        values: the physical values of the pixels, needed with thresholds.
        fss_scales: the windows of FSS, odd numbers of pixels; none leaves FSS out.
        lpips: a file of weights, see `load_lpips`; None leaves LPIPS out.
        fvd: a TorchScript file, see `load_video_network`; None leaves FVD out.
        fvd_context: whether FVD's clips begin with the frames that the model was given.
        device: the device of the networks of LPIPS and FVD.

    Raises:
        ValueError: an unknown name, thresholds without values, or `fvd_context` without `fvd`; when a network is first
            used, its file cannot be read.
    """

    convention: str = "float"
    ssim: str | None = None
    thresholds: tuple[float, ...] = ()
    values: Values | None = None
    fss_scales: tuple[int, ...] = ()
    lpips: Path | None = None
    fvd: Path | None = None
    fvd_context: bool = False
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}; got {self.convention!r}")
        if self.ssim is not None and self.ssim not in SSIM_CONVENTIONS:
            raise ValueError(f"ssim must be None or one of {', '.join(SSIM_CONVENTIONS)}; got {self.ssim!r}")
        if self.thresholds:
            checked_thresholds(self.thresholds)
            if self.values is None:
                raise ValueError("thresholds need values: what a pixel stands for")
        if checked_scales(self.fss_scales) and not self.thresholds:
            raise ValueError("fss_scales (--fss) are windows of events: give --thresholds too")
        if self.fvd_context and not self.fvd:
            raise ValueError("fvd_context (--fvd-context) is for FVD, which needs a network: give --fvd too")

    def frame_options(self) -> dict[str, Any]:
        """Return the arguments of `FrameMetrics`."""
        options = CONVENTIONS[self.convention]
        return {**options, "ssim": self.ssim or options["ssim"], "gdl": True, "lpips": self.lpips_network}

    @cached_property
    def lpips_network(self) -> LPIPS | None:
        """The network of LPIPS, loaded at its first use; None without LPIPS."""
        return load_lpips(self.lpips, self.device) if self.lpips else None

    @cached_property
    def video_network(self) -> Any:
        """The network of FVD, loaded at its first use; None without FVD."""
        return load_video_network(self.fvd, self.device) if self.fvd else None


class Meter:
    """The metrics of one model's predictions by a protocol.

        meter = Meter(n_lead=10, protocol=Protocol())
        for ...:
            meter.update(prediction, truth, given)    # (B, L, C, H, W) twice, (B, T_in, C, H, W)
        result = meter.compute()

    `compute()` returns the results of `FrameMetrics` and `EventMetrics` with their "per_lead" joined; "missing_given",
    the share of given values that are missing; "fvd" if asked for; and "protocol", sentences for people that state how
    each number was computed, by name. With `per_clip` there is "per_clip" with the scores of every clip, see the two.

    Args:
        n_lead: L, the number of lead times.
        protocol: the choice of metrics; None for the defaults of `Protocol`.
        per_clip: whether to keep the scores of every clip.

    Raises:
        ValueError: an update with other shapes, with true or given frames outside of [0, 1], or without given frames
            although the protocol has `fvd_context`; a compute before any update.
    """

    def __init__(self, n_lead: int, protocol: Protocol | None = None, *, per_clip: bool = False) -> None:
        self.protocol = protocol = protocol or Protocol()
        self.frames = FrameMetrics(n_lead, **protocol.frame_options(), per_clip=per_clip)
        self.given_missing = self.given_values = 0
        self.ensemble: EnsembleMetrics | None = None
        self.noise = 0.0
        self.events = None
        if protocol.thresholds and protocol.values is not None:
            self.events = EventMetrics(
                n_lead, protocol.thresholds, protocol.values, protocol.fss_scales, per_clip=per_clip
            )
        self.video = None
        if protocol.fvd:
            self.video = FVD(protocol.video_network, protocol.fvd.name)

    def update(self, prediction: Tensor, truth: Tensor, given: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            prediction: (B, L, C, H, W), floats or uint8.
            truth: (B, L, C, H, W), floats in [0, 1] or uint8.
            given: (B, T_in, C, H, W), the frames that the model was given; needed with `fvd_context`.
        """
        self.frames.update(prediction, truth)
        if given is not None:
            self.given_missing += int(given.isnan().sum())
            self.given_values += given.numel()
        if self.events is not None:
            self.events.update(prediction, truth)
        if self.video is not None:
            if self.protocol.fvd_context:
                if given is None:
                    raise ValueError("fvd_context needs the frames that the model was given")
                known = in_unit_range(given, "given frames")
                prediction, truth = (
                    torch.cat([known.to(future.device), as_floats(future)], 1)
                    for future in (prediction, truth)
                )
            self.video.update(prediction, truth)

    def update_ensemble(self, ensemble: Tensor, truth: Tensor, noise: float) -> None:
        """Add the ensembles (B, N, L, C, H, W) of a batch, whose results then join the others; see `EnsembleMetrics`.

        `noise` is that of `MotionRNN.predict`, which the protocol names.
        """
        self.noise = noise
        if self.ensemble is None:
            self.ensemble = EnsembleMetrics(self.frames.n_lead, ensemble.shape[1])
        self.ensemble.update(ensemble, truth)

    def compute(self) -> dict[str, Any]:
        """Return the results of all batches, see the class."""
        result = self.frames.compute()
        result["convention"] = self.protocol.convention
        result["protocol"] = {"frames": self._about_frames(result)}
        result["missing_given"] = self.given_missing / self.given_values if self.given_values else 0.0
        if result["missing"] or result["missing_given"]:
            result["protocol"]["missing"] = self._about_missing(result["missing"], result["missing_given"])
        if self.protocol.lpips_network is not None:
            result["protocol"]["lpips"] = self._about_lpips(result["samples"])
        if self.events is not None:
            events = self.events.compute()
            for name in ("per_lead", "per_clip"):
                result[name] = {**result.get(name, {}), **events.pop(name, {})}
            result |= events
            result["protocol"]["events"] = self._about_events(events["batches"])
            lowest = f"{min(self.protocol.thresholds):g}"
            if not any(events["counts"][lowest]["tp"] + events["counts"][lowest]["fn"]):
                result["protocol"]["no events"] = (
                    f"warning: no true pixel of the scored clips reaches the lowest threshold, {lowest}: do the values"
                    " (--values, --value-scale) and the data's pixel_max fit together?"
                )
            lowest_value = self.events.values.offset
            always = [f"{threshold:g}" for threshold in self.protocol.thresholds if threshold <= lowest_value]
            if always:
                result["protocol"]["only events"] = (
                    f"warning: a pixel is {lowest_value:g} or more, so that every pixel reaches the threshold"
                    f" {', '.join(always)}: CSI is 1 and FAR 0 for any prediction"
                )
        if self.ensemble is not None:
            found = self.ensemble.compute()
            result["per_lead"] |= found.pop("per_lead")
            result |= found
            if found["members"] > 1:
                result["protocol"]["ensemble"] = (
                    f"{found['members']} members with noise of {self.noise:g} times the root mean square of the hidden"
                    " maps, clipped to [0, 1]: CRPS is a sum over a frame, spread and RMSE of the members' mean are in"
                    " the unit of a pixel; all other metrics are of the prediction without noise"
                )
        if self.video is not None:
            video = self.video.compute()
            result["fvd"] = video["fvd"]
            result["protocol"]["fvd"] = self._about_video(video["protocol"])
        return result

    def _about_frames(self, result: dict[str, Any]) -> str:
        """Return the sentence on MSE, MAE, PSNR, SSIM and GDL."""
        clipped = "clipped to [0, 1]" if result["clipped"] else "as they are, not clipped"
        return (
            f"convention {self.protocol.convention!r}: MSE and MAE are sums over a frame of predictions {clipped};"
            f" PSNR {result['psnr_convention']!r}, SSIM {result['ssim_convention']!r}, GDL a sum over a frame;"
            f" {counted(result['samples'], 'clip')}, {counted(self.frames.n_lead, 'lead time')}"
        )

    def _about_missing(self, true: float, given: float) -> str:
        """Return the sentence on missing values, of which `true` and `given` are the shares."""
        networks = (
            "; for LPIPS and FVD both clips are 0 there" if self.protocol.lpips or self.protocol.fvd else ""
        )
        return (
            f"{given:.3%} of the given values are missing, which models and baselines read as 0 (the mean of the"
            f" inputs leaves them out), and {true:.3%}"
            " of the true values, which no metric counts: MSE, MAE and GDL are means over the known values times a"
            " frame's size, PSNR uses that mean, SSIM the windows without a missing value, scores of events"
            f" the known values{networks}"
        )

    def _about_lpips(self, samples: int) -> str:
        """Return the sentence on LPIPS."""
        network = self.protocol.lpips_network
        assert network is not None
        return (
            f"LPIPS by AlexNet, weights {network.source}; [0, 1] mapped to [-1, 1], grey repeated to 3 channels, not"
            f" resized; {counted(samples, 'clip')} x {counted(self.frames.n_lead, 'frame')}"
        )

    def _about_events(self, batches: int) -> str:
        """Return the sentence on the scores of events."""
        values = self.protocol.values
        assert values is not None
        averaged = f"the mean over {batches} batches" if batches != 1 else "one batch"
        pixel = "floor(255 p) / 255" if values.bytes else "p"
        windows = ", ".join(f"{scale}x{scale}" for scale in self.protocol.fss_scales)
        return (
            f"events of {values.scale:g} {pixel} {values.offset:+g} >= threshold; pooled: counts of all clips per"
            f" lead time, then the mean over lead times; CSI and FAR per batch: {averaged}, 0 without events"
            + (f"; FSS in windows of {windows} pixels, no event outside of the frame" if windows else "")
        )

    def _about_video(self, protocol: dict[str, Any]) -> str:
        """Return the sentence on FVD."""
        given = "the given frames included" if self.protocol.fvd_context else "predicted frames only"
        return (
            f"FVD by {protocol['network']} ({counted(protocol['features'], 'feature')});"
            f" {counted(protocol['clips'], 'clip')} of {counted(protocol['frames'], 'frame')}, {given};"
            f" {protocol['input']}"
        )
