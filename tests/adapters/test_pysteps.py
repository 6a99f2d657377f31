"""Is a MotionRNN a nowcast method of pysteps: in its units, with its verification and its blending?"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

pytest.importorskip("pysteps", reason="pysteps is not installed (it is built by a C compiler)")

from pysteps import blending, nowcasts, verification
from pysteps.utils import conversion, transformation

from motionrnn_ext import MotionRNN
from motionrnn_ext.adapters.pysteps import forecast, register
from motionrnn_ext.metrics.reflectivity import dbz_to_rain

LOW, HIGH = 0.0, 70.0
DBZ = {"unit": "dBZ", "transform": "dB", "threshold": 5.0, "zerovalue": -10.0, "accutime": 5}
RAIN = {"unit": "mm/h", "transform": None, "threshold": 0.1, "zerovalue": 0.0, "accutime": 5}


class Persistence(MotionRNN):
    """A model whose prediction is known: the last frame."""

    def predict(self, frames: torch.Tensor, n_future: int, **options: Any) -> torch.Tensor:
        self.read = frames
        future = frames[:, -1:].expand(-1, n_future, -1, -1, -1)
        return (
            future
            if options["members"] is None
            else future[:, None].expand(-1, options["members"], -1, -1, -1, -1)
        )


def persistence() -> Persistence:
    return Persistence("convlstm", 1, (4, 4), 2).double()


def model(**options: Any) -> MotionRNN:
    torch.manual_seed(0)
    return MotionRNN("convlstm", 1, (4, 4), 2, **options)


def echoes(steps: int = 4, height: int = 16, width: int = 16) -> np.ndarray:
    """Reflectivities in dBZ, a third of them at the zerovalue."""
    drawn = np.random.default_rng(0).uniform(-12, 60, (steps, height, width))
    return np.where(drawn < DBZ["threshold"], DBZ["zerovalue"], drawn)


def inputs(unit: str, transform: str | None) -> tuple[np.ndarray, dict[str, Any]]:
    """The echoes as pysteps converts them."""
    fields, metadata = echoes(), DBZ
    if unit != "dBZ":
        metadata = {**metadata, "zr_a": 223.0, "zr_b": 1.53}
        fields, metadata = getattr(conversion, {"mm/h": "to_rainrate", "mm": "to_raindepth"}[unit])(
            fields, metadata
        )
    if transform is None:
        return transformation.dB_transform(fields, metadata, inverse=True)
    return transformation.dB_transform(fields, metadata)


@pytest.mark.parametrize("unit", ["dBZ", "mm/h", "mm"])
@pytest.mark.parametrize("transform", [None, "dB"])
def test_values_come_back_in_their_unit(unit: str, transform: str | None) -> None:
    fields, metadata = inputs(unit, transform)
    known = persistence()
    found = forecast(fields, None, 3, model=known, dbz=(LOW, HIGH), metadata=metadata)
    assert found.shape == (3, 16, 16) and found.dtype == np.float64
    # What the model reads is the reflectivity, computed here without pysteps.
    pixels = ((echoes() - LOW) / (HIGH - LOW)).clip(0, 1)
    np.testing.assert_allclose(known.read[0, :, 0].numpy(), pixels, atol=1e-9)
    # Powers and logarithms in float64, there and back.
    np.testing.assert_allclose(found, np.broadcast_to(fields[-1], found.shape), rtol=1e-9, atol=1e-9)


def test_values_are_those_of_the_model() -> None:
    """Rain rates of a model with weights, against a computation by hand."""
    fields = 10 ** (np.random.default_rng(1).uniform(-2, 2, (4, 16, 16)))
    found = forecast(fields, None, 2, model=(net := model()), dbz=(-10, 60), metadata=RAIN)
    rates = np.where(fields < 0.1, 0, fields)
    with np.errstate(divide="ignore"):
        frames = ((10 * np.log10(200 * rates**1.6) + 10) / 70).clip(0, 1)
    predicted = (
        net.predict(torch.from_numpy(frames).float()[None, :, None], 2)[0, :, 0].double().numpy().clip(0, 1)
    )
    wanted = np.vectorize(dbz_to_rain)(70 * predicted - 10)
    wanted[(predicted == 0) | (wanted < 0.1)] = 0
    # float32 in the network, whose errors of 1e-6 of a pixel are 1e-5 of a rain rate.
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_missing_values() -> None:
    # The patches do not divide this size.
    fields = echoes(height=18, width=13)
    fields[:, :3] = np.nan
    fields[-1, 5] = np.nan
    known = persistence()
    found = forecast(
        np.ma.masked_greater(fields, 55), None, [2, 5], model=known, dbz=(LOW, HIGH), metadata=DBZ
    )
    assert found.shape == (2, 18, 13)
    assert np.isnan(found[:, :3]).all() and not np.isnan(found[:, 3:]).any()
    assert (known.read[0, :, 0, :3] == 0).all() and (found[:, 5] == DBZ["zerovalue"]).all()
    assert (found[:, 3:] <= 55).all()


def test_an_ensemble() -> None:
    options: Any = {"model": model(), "dbz": (20, 70), "metadata": DBZ, "n_ens_members": 3, "noise": 0.5}
    a, b, other = (forecast(echoes(), None, [1, 3], seed=seed, **options) for seed in (1, 1, 2))
    assert a.shape == (3, 2, 16, 16)
    np.testing.assert_array_equal(a, b)
    assert (a != other).any() and a.std(0).max() > 0


def test_pysteps_verifies_and_blends_it() -> None:
    register(model(), dbz=(LOW, HIGH), name="MotionRNN", metadata=DBZ)
    method = nowcasts.get_method("motionrnn")
    fields = echoes(8)
    velocity = np.zeros((2, 16, 16))
    nowcast = method(fields[:4], velocity, 4)
    scores = verification.det_cat_fct(nowcast[-1], fields[-1], 20.0, scores="CSI")
    assert 0 <= scores["CSI"] <= 1
    members = method(fields[:4], velocity, 4, n_ens_members=4, seed=0)
    assert np.isfinite(verification.ensscores.ensemble_skill(members[:, -1], fields[-1], "RMSE"))
    crps = verification.probscores.CRPS(members[:, -1], fields[-1])
    assert np.isfinite(crps) and crps > 0

    nwp, of_nwp = conversion.to_rainrate(np.full((4, 16, 16), 30.0), DBZ)
    for kwargs in ({}, {"n_ens_members": 2}):
        blended = blending.linear_blending.forecast(
            fields[:4], DBZ, velocity, 4, 5, "motionrnn", nwp, of_nwp,
            start_blending=5, end_blending=20, nowcast_kwargs=kwargs,
        )  # fmt: skip
        assert blended.shape[-3:] == (4, 16, 16)
        # Alone at first, and the other forecast's 30 dBZ at the end.
        np.testing.assert_allclose(blended[..., -1, :, :], dbz_to_rain(30), rtol=1e-6)
    np.testing.assert_allclose(
        blending.linear_blending.forecast(
            fields[:4], DBZ, velocity, 4, 5, "motionrnn", nwp, of_nwp, start_blending=5, end_blending=20
        )[0],
        conversion.to_rainrate(nowcast, DBZ)[0][0],
    )


def test_steps_blends_it(tmp_path: Path) -> None:
    """As an external nowcast, which STEPS reads one step further than it forecasts."""
    fields = np.stack(
        [gaussian_filter(field, 3) for field in np.random.default_rng(0).normal(size=(8, 64, 64))]
    )
    fields = 60 * (fields - fields.min()) / np.ptp(fields) - 10
    nowcast = forecast(
        fields[:4], None, 4, model=model(), dbz=(10, 70), metadata=DBZ, n_ens_members=2, seed=0
    )
    blended = blending.steps.forecast(
        fields[1:4], fields[None, 3:7], np.zeros((2, 64, 64)), np.zeros((1, 4, 2, 64, 64)), 3, 5,
        datetime.datetime(2026, 1, 1), 2, precip_nowcast=nowcast, nowcasting_method="external_nowcast",
        n_cascade_levels=3, precip_thr=5.0, kmperpixel=1.0, seed=1, noise_method=None, vel_pert_method=None,
        probmatching_method=None, mask_method=None, resample_distribution=False, outdir_path_skill=str(tmp_path),
    )  # fmt: skip
    assert blended.shape == (2, 3, 64, 64) and np.isfinite(blended).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"precip": np.zeros((8, 8))}, r"precip has shape \(8, 8\); it should be \(T, H, W\)"),
        ({"timesteps": 0}, "timesteps is 0; it should be a number of steps of 1 or more"),
        ({"timesteps": 2.5}, "timesteps is 2.5; it should be"),
        ({"timesteps": [2, 1]}, r"timesteps is \[2, 1\]; it should be .* an ascending list"),
        ({"metadata": None}, "metadata is None; it should be the dict of precip"),
        ({"metadata": {**DBZ, "transform": "sqrt"}}, "metadata is of transform 'sqrt'; it should be"),
        ({"metadata": {**DBZ, "unit": "K"}}, "Cannot convert unit K"),
        ({"dbz": (70, 0)}, r"dbz is \(70, 0\); it should be the reflectivity of pixel 0 and the higher one of pixel 1"),
        ({"model": MotionRNN("convlstm", 3, (4,), 2)}, "model has 3 channels; it should have 1"),
        ({"precip": np.full((2, 8, 8), np.inf)}, "precip has infinite values; it should have numbers"),
    ],
)  # fmt: skip
def test_mistakes(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "precip": np.zeros((2, 8, 8)), "velocity": None, "timesteps": 1, "model": model(), "dbz": (0, 70),
        "metadata": DBZ,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        forecast(**{**arguments, **changed})


def test_a_model_for_one_size() -> None:
    fixed = MotionRNN("mim", 1, (4, 4), 2, image_size=(16, 16))
    options: Any = {"model": fixed, "dbz": (0, 70), "metadata": DBZ}
    assert forecast(echoes(3, 15, 10), None, 1, **options).shape == (1, 15, 10)
    with pytest.raises(
        ValueError, match="frames are 20x10; they should be at most 16x16, the model's image_size"
    ):
        forecast(echoes(3, 20, 10), None, 1, **options)
