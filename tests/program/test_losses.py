"""Does every term of the loss compute its equation, and do missing values contribute nothing?"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("lightning", reason="the training program's packages are not installed")

from skimage.metrics import structural_similarity
from trainings import TINY

from motionrnn_ext import cli
from motionrnn_ext.data import DATASETS
from motionrnn_ext.training import losses
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.module import Training

# Frames of 1 are 60 dBZ, frames of 0 are 0 dBZ.
LEVELS = losses.levels_of((0.0, 60.0), (200.0, 1.6))
TERMS = {name: (LEVELS,) if name == "balanced" else () for name in losses.TERMS}


def frames(holes: bool) -> tuple[Tensor, Tensor]:
    """Return predictions and true frames (2, 3, 1, 16, 14) in float64; with holes, a fifth of the truth is nan."""
    generator = torch.Generator().manual_seed(0)
    prediction, truth, drawn = torch.rand(3, 2, 3, 1, 16, 14, generator=generator, dtype=torch.float64)
    if holes:
        # The last frames keep windows of 7x7 without a hole.
        truth[:, :2] = truth[:, :2].masked_fill(drawn[:, :2] < 0.2, math.nan)
        truth[:, 2, :, :4] = math.nan
    return prediction, truth


def by_hand(name: str, prediction: Tensor, truth: Tensor) -> float:
    """The terms in numpy, value by value."""
    p, y = np.asarray(prediction), np.asarray(truth)
    known = ~np.isnan(y)
    error = (p - y)[known]
    if name in ("l2", "l1"):
        return float(np.mean(error**2 if name == "l2" else np.abs(error)))
    if name == "balanced":
        # Back from pixels to rain rates.
        rate = (10 ** (60 * y[known] / 10) / 200) ** (1 / 1.6)
        weights = np.select([rate >= 30, rate >= 10, rate >= 5, rate >= 2], [30, 10, 5, 2], 1)
        return float(np.mean(weights * error**2) + np.mean(weights * np.abs(error)))
    if name == "gdl":
        edges = [np.abs(np.abs(np.diff(y, axis=a)) - np.abs(np.diff(p, axis=a))) for a in (-2, -1)]
        return float(np.nanmean(np.concatenate([edge.ravel() for edge in edges])))
    values = []
    for guess, fact in zip(p.reshape(-1, 16, 14), y.reshape(-1, 16, 14), strict=True):
        image = structural_similarity(
            np.nan_to_num(fact), np.where(np.isnan(fact), 0, guess), win_size=7, data_range=1.0, full=True,
            use_sample_covariance=False,
        )[1]  # fmt: skip
        for i in range(3, 13):
            for j in range(3, 11):
                if not np.isnan(fact[i - 3 : i + 4, j - 3 : j + 4]).any():
                    values.append(1 - image[i, j])
    return float(np.mean(values))


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("name", TERMS)
def test_every_term_by_hand(name: str, holes: bool) -> None:
    prediction, truth = frames(holes)
    found = losses.TERMS[name](prediction, truth, *TERMS[name])
    assert (found.total / found.number).item() == pytest.approx(by_hand(name, prediction, truth), rel=1e-6)


@pytest.mark.parametrize("name", TERMS)
def test_missing_values_contribute_nothing(name: str) -> None:
    prediction, truth = frames(holes=True)
    other = torch.where(truth.isnan(), 7.0, prediction)
    found = [losses.TERMS[name](p, truth, *TERMS[name]) for p in (prediction, other)]
    assert found[0].total == found[1].total and found[0].number == found[1].number
    prediction.requires_grad_()
    losses.TERMS[name](prediction, truth, *TERMS[name]).total.backward()
    assert prediction.grad is not None and prediction.grad.isfinite().all()
    assert prediction.grad[truth.isnan()].abs().max() == 0
    assert prediction.grad[~truth.isnan()].abs().max() > 0
    nothing = losses.TERMS[name](prediction.detach(), truth * math.nan, *TERMS[name])
    assert nothing.total == 0 and nothing.number == 0


@pytest.mark.parametrize("name", TERMS)
def test_gradients_of_every_term(name: str) -> None:
    prediction, truth = frames(holes=True)
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p: losses.TERMS[name](p, truth, *TERMS[name]).total, prediction, atol=1e-6, fast_mode=True
    )


def test_levels_are_those_of_the_rain_rates() -> None:
    """2 mm/h is 27.8 dBZ by Marshall and Palmer, and 22.4 dBZ by the relation of HKO-7, whose pixel 1 is 60 dBZ."""
    assert [60 * level for level in LEVELS] == pytest.approx([27.83, 34.19, 39.01, 46.64], abs=0.01)
    hko7 = losses.levels_of((-10.0, 60.0), (58.53, 1.56))
    assert [70 * level - 10 for level in hko7] == pytest.approx([22.37, 28.58, 33.27, 40.72], abs=0.01)


SETTINGS: dict[str, Any] = {"sampling": "none", "dbz": (0.0, 60.0)}


@pytest.mark.parametrize(
    ("loss", "weights"),
    [
        ("balanced", {"balanced": 1.0}),
        ("l1+l2+ssim+gdl", {"l1": 0.5, "l2": 1.0, "ssim": 0.2, "gdl": 3.0}),
        ("gdl+balanced", {"balanced": 1.0, "gdl": 3.0}),
    ],
)
def test_the_loss_is_the_weighted_sum_of_its_terms(loss: str, weights: dict[str, float]) -> None:
    config = replace(TINY, **SETTINGS, loss=loss, l1_weight=0.5, ssim_weight=0.2, gdl_weight=3.0)
    module = Training(config)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    clips = torch.rand(2, 6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    prediction = module.model(clips, 3)
    means = {name: losses.TERMS[name](prediction, clips[:, 1:], *TERMS[name]) for name in weights}
    wanted = sum(weight * means[name].total / means[name].number for name, weight in weights.items())
    torch.testing.assert_close(module.training_step(clips, 0), wanted, rtol=1e-5, atol=0)


def test_two_processes_have_the_loss_of_the_joined_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of both losses, although one process has more missing values, by a stand-in for the sum of counts."""
    monkeypatch.setitem(DATASETS, "mine", replace(DATASETS["frames"], title="mine"))
    loss = {"loss": "balanced+ssim+gdl", "missing": "nan", "root": "x", "dataset": "mine", "dbz": (0, 60)}
    prediction, truth = (x.float() for x in frames(holes=True))
    truth[1, 2] = math.nan
    counts: list[Tensor] = []

    def of(part: slice, config: Config, reduce: Any) -> Tensor:
        monkeypatch.setattr(torch.distributed, "all_reduce", reduce)
        return Training(config)._loss(prediction[part], truth[part], joined=True)[0]

    one, two = (replace(TINY, **loss, devices=n) for n in (1, 2))
    whole = of(slice(0, 2), one, lambda found, _: counts.append(found.clone()))
    parts = [of(slice(i, i + 1), two, lambda found, _: found.copy_(counts[0])) for i in range(2)]
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"loss": "mse"},
            "loss must be a sum of different terms of l2, l1, balanced, ssim, gdl, with l2, l1 or",
        ),
        ({"loss": "l2+l2"}, "such as l2, l1+l2 or balanced+gdl; got 'l2+l2'"),
        ({"loss": "ssim+gdl"}, "with l2, l1 or balanced among them"),
        (
            {"loss": "balanced"},
            "give the reflectivity of pixels 0 and 1 in dBZ, such as dbz=(0, 70) (--dbz 0 70)",
        ),
        (
            {"loss": "balanced", "dbz": (0, 20)},
            "dbz must be a range that reaches 2 mm/h, the lowest rate with",
        ),
        (
            {"dbz": (70, 0)},
            "dbz must be two numbers, the reflectivity of pixel 0 and the higher one of pixel 1",
        ),
        ({"zr": (0, 1.6)}, "zr must be two numbers above 0, a and b of Z = a R^b"),
        ({"gdl_weight": -1}, "gdl_weight must be 0 or more; got -1"),
        ({"ssim_weight": -1}, "ssim_weight must be 0 or more; got -1"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        replace(TINY, **settings)
    assert message in str(error.value)


def test_settings_of_an_older_version_are_read() -> None:
    old = TINY.to_dict()
    for name in ("ssim_weight", "gdl_weight", "zr", "dbz"):
        del old[name]
    assert Config.from_dict(old, "config.json") == TINY


def test_train_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TINY.write(tmp_path / "settings.json")
    options = "--loss balanced+ssim+gdl --dbz 0 60 --zr 58.53 1.56 --gdl-weight 0.5 --steps 2 --val-every 2"
    command = ["train", "--config", str(tmp_path / "settings.json"), "--out", str(tmp_path / "run")]
    assert cli.main([*command, "--no-progress", *options.split()]) == 0
    config = Config.read(tmp_path / "run" / "config.json")
    assert (config.loss, config.dbz, config.zr) == ("balanced+ssim+gdl", (0.0, 60.0), (58.53, 1.56))
    assert "lowest validation MSE" in capsys.readouterr().out
