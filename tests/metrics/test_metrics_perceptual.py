"""LPIPS against a second library with the same random weights; FVD with a small network and known Gaussians."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

pytest.importorskip("torchmetrics", reason="the training program's packages are not installed")

import numpy as np
import torchmetrics.functional.image.lpips as second
from perceptual_networks import alexnet
from scipy.linalg import sqrtm

from motionrnn_ext.metrics import (
    FVD,
    FrameMetrics,
    frame_lpips,
    frechet_distance,
    load_lpips,
    load_video_network,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.(script|load). is deprecated")


def frames(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


@pytest.fixture
def second_library(alexnet_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """torchmetrics' LPIPS on the same AlexNet, which it would otherwise have torchvision download."""
    features = load_lpips(alexnet_weights).features
    monkeypatch.setattr(second, "_get_tv_model_features", lambda net, pretrained: features)
    return second.learned_perceptual_image_patch_similarity


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_agrees_with_a_second_library(
    channels: int, alexnet_weights: Path, second_library: Any
) -> None:
    prediction, truth = frames(2, 3, channels, 33, 40)
    found = frame_lpips(prediction, truth, load_lpips(alexnet_weights))
    images = [x.flatten(0, 1).expand(-1, 3, -1, -1) for x in (prediction, truth)]
    wanted = second_library(*images, net_type="alex", normalize=True, reduction="none")
    assert found.shape == (2, 3) and found.min() > 1e-4
    torch.testing.assert_close(found.flatten(), wanted, rtol=1e-5, atol=1e-7)
    assert frame_lpips(truth, truth, load_lpips(alexnet_weights)).abs().max() == 0


def test_weights_of_a_whole_lpips(alexnet_weights: Path, tmp_path: Path) -> None:
    """The names are those of the LPIPS authors' module; its own linear weights count."""
    network = load_lpips(alexnet_weights)
    places = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
    state = {f"lin{i}.model.1.weight": w.view(1, -1, 1, 1) * 2 for i, w in enumerate(network.weights)}
    for name, value in network.features.state_dict().items():
        place = int(name.split(".")[0])
        state[f"net.slice{places[place]}.{name}"] = value
    torch.save({**state, "scaling_layer.shift": torch.zeros(1)}, tmp_path / "whole.pth")
    pair = frames(1, 2, 1, 32, 32)
    doubled = frame_lpips(*pair, load_lpips(tmp_path / "whole.pth"))
    torch.testing.assert_close(doubled, 2 * frame_lpips(*pair, network))


def test_frames_have_a_gradient_of_lpips(alexnet_weights: Path) -> None:
    """As a term of a loss; the network's weights take none."""
    prediction, truth = (x.double() for x in frames(1, 1, 1, 32, 32))
    network = load_lpips(alexnet_weights).double()
    prediction.requires_grad_()
    frame_lpips(prediction, truth, network).sum().backward()
    towards = torch.randn(prediction.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ends = [frame_lpips(prediction + s * towards, truth, network).sum() for s in (1e-6, -1e-6)]
    slope = (ends[0] - ends[1]) / 2e-6
    assert prediction.grad is not None and slope != 0
    torch.testing.assert_close((prediction.grad * towards).sum(), slope, rtol=1e-4, atol=0)
    assert all(weight.grad is None for weight in network.parameters())


def test_lpips_is_a_metric_of_frames(alexnet_weights: Path) -> None:
    prediction, truth = frames(3, 2, 1, 32, 32)
    network = load_lpips(alexnet_weights)
    metrics = FrameMetrics(2, ssim=None, lpips=network)
    for i in range(3):
        metrics.update(prediction[i : i + 1] * 3 - 1, truth[i : i + 1])
    wanted = frame_lpips((prediction * 3 - 1).clamp(0, 1), truth, network).mean(0)
    assert metrics.compute()["per_lead"]["lpips"] == pytest.approx(wanted.tolist(), rel=1e-4)
    assert metrics.names == ("mse", "mae", "psnr", "lpips")


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hostile_code_ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"text", r"is damaged, or not a file of weights \(a state dict by torch.save\)$"),
        (Hostile(), r"is damaged, or not a file of weights \(a state dict by torch.save\)$"),
        ([1, 2], "must hold a state dict: names and tensors; it holds list"),
        (
            {"weight": torch.zeros(2)},
            "must hold the weights of AlexNet or of a whole LPIPS .*'features.0.weight'",
        ),
        ({**alexnet(), "features.0.weight": torch.zeros(2)}, "holds no weights of AlexNet: size mismatch"),
    ],
)
def test_what_are_no_weights(
    content: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"weights\.pth {message}") as raised:
        load_lpips(path)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "hostile_code_ran").exists()


def test_frames_that_lpips_cannot_take(alexnet_weights: Path) -> None:
    network = load_lpips(alexnet_weights)
    frame_lpips(*frames(1, 1, 1, 31, 31), network)
    with pytest.raises(ValueError, match=r"LPIPS needs frames of at least 31x31; got \(30, 40\)"):
        frame_lpips(*frames(1, 1, 1, 30, 40), network)
    with pytest.raises(ValueError, match="LPIPS needs frames of 1 or 3 channels; got 2"):
        frame_lpips(*frames(1, 1, 2, 32, 32), network)


# ---- FVD


def covariance(size: int, rank: int, generator: np.random.Generator) -> np.ndarray:
    factor = generator.normal(size=(size, rank))
    return factor @ factor.T


def test_frechet_distance_of_known_gaussians() -> None:
    """Commuting covariances: |m - m'|^2 + sum of (a_i - b_i)^2 over the standard deviations."""
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    a, b = np.array([1.0, 2.0, 0.0, 0.5]), np.array([3.0, 2.0, 1.0, 0.0])
    mean, other = np.array([1.0, 0, 0, 2]), np.array([0.0, 0, 3, 2])
    matrices = [torch.from_numpy(rotation @ np.diag(s**2) @ rotation.T) for s in (a, b)]
    found = frechet_distance(torch.from_numpy(mean), matrices[0], torch.from_numpy(other), matrices[1])
    assert found.item() == pytest.approx(10 + ((a - b) ** 2).sum(), rel=1e-7)
    zero = frechet_distance(torch.from_numpy(mean), matrices[0], torch.from_numpy(mean), matrices[0])
    assert zero.item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("rank", [12, 5])  # 5: fewer clips than features
def test_frechet_distance_agrees_with_scipy(rank: int) -> None:
    generator = np.random.default_rng(rank)
    means = generator.normal(size=(2, 10))
    first, other = (covariance(10, rank, generator) for _ in range(2))
    root = sqrtm(first @ other)
    wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(first + other - 2 * root.real)
    arguments = (torch.from_numpy(x) for x in (means[0], first, means[1], other))
    assert frechet_distance(*arguments).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_fvd(channels: int, video_network: Path) -> None:
    prediction, truth = frames(6, 4, channels, 20, 28)
    prediction = prediction * 1.5 - 0.2  # clipped
    fvd = FVD(load_video_network(video_network), "small.pt")
    for part in (slice(0, 4), slice(4, 6)):
        fvd.update(prediction[part], truth[part])
    result = fvd.compute()

    features = []
    for clips in (truth, prediction.clamp(0, 1)):
        sizes = (
            interpolate(clips.flatten(0, 1), (224, 224), mode="bilinear").view(6, 4, channels, 224, 224) * 2
            - 1
        )
        features.append(
            np.stack(
                [sizes.mean((1, 2, 3, 4)), sizes[..., 0, 0].mean((1, 2)), sizes[:, 0, 0].mean((1, 2))], 1
            )
        )
    (m, s), (m2, s2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in np.float64(features))
    wanted = ((m - m2) ** 2).sum() + np.trace(s + s2 - 2 * sqrtm(s @ s2).real)
    assert result["fvd"] == pytest.approx(wanted, rel=1e-4)
    protocol = result["protocol"]
    assert (protocol["network"], protocol["clips"], protocol["frames"], protocol["features"]) == (
        "small.pt",
        6,
        4,
        3,
    )
    assert "20x28 resized to 224x224" in protocol["input"]
    assert ("grey" in protocol["input"]) == (channels == 1)


def test_clips_that_fvd_cannot_take(video_network: Path) -> None:
    fvd = FVD(load_video_network(video_network), "small.pt")
    with pytest.raises(
        ValueError, match=r"small\.pt cannot take clips of 2 frames \(I3D needs 9 or more: .*pooling window"
    ) as raised:
        fvd.update(*frames(2, 2, 1, 8, 8))
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="C 1 or 3; got"):
        fvd.update(*frames(2, 4, 2, 8, 8))
    with pytest.raises(ValueError, match="FVD needs two clips or more; got 0"):
        fvd.compute()
    fvd.update(*frames(1, 4, 1, 8, 8))
    with pytest.raises(ValueError, match="FVD needs two clips or more; got 1"):
        fvd.compute()
    with pytest.raises(
        ValueError, match=r"must give features \(B, D\) of 2 clips; it gives \(2, 3, 4, 224, 224\)"
    ):
        FVD(lambda video: video, "mine").update(*frames(2, 4, 1, 8, 8))


def test_what_are_no_networks(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with pytest.raises(ValueError, match=r"net\.pt cannot be read: there is no such file"):
        load_video_network(path)
    for content in (b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"net\.pt is damaged, or not a TorchScript file \(.*\)$"
        ) as raised:
            load_video_network(path)
        assert "\n" not in str(raised.value)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"net\.pt is damaged, or not a TorchScript file"):
        load_video_network(path)
