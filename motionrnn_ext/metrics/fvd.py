"""FVD: the Frechet distance between the features of true and of predicted clips (Unterthiner et al., 2018).

    FVD = |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))

m and S are the mean and the covariance of a video network's features over true clips, m' and S' those over predicted
clips. The user names the network, a TorchScript file. The common one is I3D trained on Kinetics-400, which takes
(B, 3, T, 224, 224) in [-1, 1] and needs 9 frames or more. The number depends on the network, on the number and the
length of the clips, and on whether they include the frames that the model was given. `FVD.compute` states all of this
beside the number.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..pixels import as_floats, check_range, check_units

# The height and width of the network's input, in pixels.
SIZE = 224


def frechet_distance(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor
) -> Tensor:
    """Return the Frechet distance of two Gaussians, |m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)), a float64 scalar.

    tr (S S')^(1/2) is computed as the sum of the singular values of S^(1/2) S'^(1/2), which is accurate for a singular
    S too, as with fewer clips than features.

    Args:
        mean: m, (D,).
        covariance: S, (D, D).
        other_mean: m', (D,).
        other_covariance: S', (D, D).
    """
    apart = (mean.double() - other_mean.double()).square().sum()
    traces = covariance.double().trace() + other_covariance.double().trace()
    roots = [_square_root(matrix.double()) for matrix in (covariance, other_covariance)]
    return apart + traces - 2 * torch.linalg.svdvals(roots[0] @ roots[1]).sum()


def _square_root(covariance: Tensor) -> Tensor:
    """Return the square root of a symmetric matrix whose eigenvalues are negative by rounding at most."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


class FVD:
    """The Frechet video distance, whose features are gathered batch by batch.

        fvd = FVD(load_video_network("i3d.pt"))
        for ...:
            fvd.update(prediction, truth)    # (B, T, C, H, W) in [0, 1] or uint8 each, C 1 or 3
        fvd.compute()                        # {"fvd": ..., "protocol": ...}

    Both clips are 0 where a true value is missing (nan). nan in a prediction makes the result nan.

    Args:
        network: a function of clips (B, 3, T, 224, 224) in [-1, 1] that returns features (B, D). A TorchScript network
            is called with `rescale=False, resize=False, return_features=True`, as far as it has these arguments; the
            common I3D file does.
        name: the network's name in messages and in the protocol.

    Raises:
        ValueError: clips have other shapes, true clips leave [0, 1], the network refuses the clips (too short) or
            returns features that are not (B, D); a compute of fewer than two clips.
    """

    def __init__(self, network: Any, name: str = "a network") -> None:
        self.network, self.name = network, name
        self.options = _options(network)
        # The features of predicted and of true clips.
        self.features: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.shape: tuple[int, ...] = ()

    @torch.no_grad()
    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Add a batch of clips: (B, T, C, H, W) each, floats or uint8, with C = 1 or 3."""
        if prediction.ndim != 5 or prediction.shape != truth.shape or prediction.shape[2] not in (1, 3):
            shapes = f"{tuple(prediction.shape)} and {tuple(truth.shape)}"
            raise ValueError(f"clips must both be (B, T, C, H, W) with C 1 or 3; got {shapes}")
        check_range(truth, "true frames")
        check_units(prediction)
        missing = truth.isnan().to(prediction.device)
        if missing.any():
            prediction, truth = (
                as_floats(clips).masked_fill(missing.to(clips.device), 0) for clips in (prediction, truth)
            )
        self.shape = tuple(prediction.shape[1:])
        for gathered, clips in zip(self.features, (prediction, truth)):
            gathered.append(self._features(clips).cpu())

    def _features(self, clips: Tensor) -> Tensor:
        """Return the features of clips: (B, T, C, H, W) in [0, 1] -> (B, D) float64."""
        b, t, _, *size = clips.shape
        frames = (
            as_floats(clips, "predictions")
            .float()
            .clamp(0, 1)
            .mul(2)
            .sub(1)
            .flatten(0, 1)
            .expand(-1, 3, -1, -1)
        )
        if size != [SIZE, SIZE]:
            frames = interpolate(frames, (SIZE, SIZE), mode="bilinear", align_corners=False)
        video = frames.unflatten(0, (b, t)).transpose(1, 2)  # (B, 3, T, 224, 224)
        try:
            features = self.network(video.to(_device(self.network)), **self.options)
        except (RuntimeError, torch.jit.Error) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(
                f"{self.name} cannot take clips of {t} frames (I3D needs 9 or more: predict more frames, or count"
                f" the given ones too): {reason}"
            ) from None
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != b:
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"{self.name} must give features (B, D) of {b} clips; it gives {found}")
        return features.double()

    def compute(self) -> dict[str, Any]:
        """Return "fvd", a number, and "protocol": the network, the clips and the input that it was computed with."""
        predicted, true = (torch.cat(found) if found else torch.empty(0, 0) for found in self.features)
        if len(true) < 2:
            raise ValueError(f"FVD needs two clips or more; got {len(true)}")
        if not (true.isfinite().all() and predicted.isfinite().all()):
            distance = math.nan
        else:
            distance = frechet_distance(*(m for f in (true, predicted) for m in _moments(f))).item()
        t, channels, *size = self.shape
        protocol = {
            "network": self.name,
            "features": true.shape[1],
            "clips": len(true),
            "frames": t,
            "input": f"{'grey repeated to 3 channels, ' if channels == 1 else ''}"
            f"{size[0]}x{size[1]} resized to {SIZE}x{SIZE} (bilinear), [0, 1] mapped to [-1, 1]",
        }
        return {"fvd": distance, "protocol": protocol}


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and the covariance (D, D) of features (N, D)."""
    return features.mean(0), torch.atleast_2d(features.T.cov())


def load_video_network(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Any:
    """Load a video network for `FVD` from a TorchScript file, in evaluation mode.

    A TorchScript file holds a program as well as weights, and loading and calling the network run it. Use files only
    from sources that you would run code from. Any other file, such as a pickle, is refused and runs nothing.

    Raises:
        ValueError: there is no such file, or it is not a TorchScript file.
    """
    if not Path(path).is_file():
        raise ValueError(f"FVD network {path} cannot be read: there is no such file")
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError:
        raise ValueError(f"{path} is damaged, or not a TorchScript file (by torch.jit.save)") from None


def _options(network: Any) -> dict[str, bool]:
    """Return those options of the common I3D file that a network's TorchScript schema has."""
    wanted = {"rescale": False, "resize": False, "return_features": True}
    schema = getattr(getattr(network, "forward", None), "schema", None)
    there = {argument.name for argument in schema.arguments} if schema else set()
    return {name: value for name, value in wanted.items() if name in there}


def _device(network: Any) -> torch.device:
    parameters = network.parameters() if isinstance(network, torch.nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))
