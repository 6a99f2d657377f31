"""Are the members of an ensemble the predictions of one sequence, which differ by the stated noise alone?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from motionrnn_ext import MotionRNN
from motionrnn_ext.layers.cells import CELLS
from motionrnn_ext.layers.cells.base import LSTMState
from motionrnn_ext.models.ensembles import disturbing
from motionrnn_ext.models.motion_rnn import MotionRNNState


def model_of(predictor: str = "convlstm", **options: Any) -> MotionRNN:
    torch.manual_seed(0)
    options = {"image_size": (16, 16), "filter_size": 3, "dtype": torch.float64, **options}
    return MotionRNN(predictor, 1, (8, 8), 2, **options)


def clip(frames: int = 3, batch: int = 2) -> Tensor:
    return torch.rand(
        batch, frames, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("predictor", CELLS)
def test_members_without_noise_are_the_prediction(predictor: str) -> None:
    model, frames = model_of(predictor), clip()
    alone = model.predict(frames, 3)
    members = model.predict(frames, 3, members=3, noise=0)
    assert members.shape == (2, 3, 3, 1, 16, 16)
    for i in range(3):
        torch.testing.assert_close(members[:, i], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("predictor", CELLS)
def test_members_are_those_of_steps_with_noise(predictor: str) -> None:
    """The same by `step`: all members read the inputs, and the states get noise before each step that predicts."""
    model, frames, noise = model_of(predictor), clip(), 0.3
    found = model.predict(frames, 3, generator=seeded(), members=2, noise=noise)
    generator, state, wanted = seeded(), None, []
    doubled = frames.repeat_interleave(2, 0)
    with torch.no_grad():
        for t in range(frames.shape[1] - 1):
            _, state = model.step(doubled[:, t], state)
        read = doubled[:, -1]
        for _ in range(3):
            assert state is not None
            layers = []
            for layer in state.layers:
                size = layer.hidden.square().flatten(1).mean(1).sqrt()
                drawn = torch.randn(layer.hidden.shape, dtype=torch.float64, generator=generator)
                moved = noise * torch.einsum("b,b...->b...", size, drawn)
                layers.append(layer._replace(hidden=layer.hidden + moved))
            read, state = model.step(read, state._replace(layers=tuple(layers)))
            wanted.append(read)
    torch.testing.assert_close(found.flatten(0, 1), torch.stack(wanted, 1), rtol=1e-9, atol=1e-12)


def test_a_seed_repeats_an_ensemble_and_noise_widens_it() -> None:
    model, frames = model_of(), clip()
    one, same, other, wide = (
        model.predict(frames, 4, generator=seeded(seed), members=8, noise=noise)
        for seed, noise in ((0, 0.1), (0, 0.1), (1, 0.1), (0, 0.4))
    )
    assert torch.equal(one, same) and not torch.equal(one, other)
    # Every lead time of every sample has a spread, and four times the noise about four times the spread.
    spread = one.std(1).mean((-1, -2))
    assert spread.min() > 0
    assert (wide.std(1).mean() / one.std(1).mean()).item() == pytest.approx(4, rel=0.15)


def test_noise_is_a_share_of_each_samples_hidden_map() -> None:
    size = torch.tensor([0.5, 2.0]).view(2, 1, 1, 1)
    hidden = size * torch.randn(2, 16, 32, 32, generator=seeded(2))
    state = MotionRNNState((LSTMState(hidden, hidden),), (), None)
    after = disturbing(0.1, seeded())(state).layers[0]
    assert torch.equal(after.cell, hidden)
    noise = (after.hidden - hidden).flatten(1)
    rms = hidden.square().flatten(1).mean(1).sqrt()
    # 16,384 draws: the deviation is known to 0.6 %.
    assert (noise.std(1) / rms).tolist() == pytest.approx([0.1, 0.1], rel=0.02)
    assert (noise.mean(1) / rms).abs().max() < 0.1 * 4 / 128


def test_one_input_frame_has_no_state_to_disturb() -> None:
    members = model_of().predict(clip(frames=1), 3, generator=seeded(), members=4, noise=0.5)
    assert members[:, :, 0].std(1).max() < 1e-12 < members[:, :, 1].std(1).min()


def test_an_ensemble_begins_with_the_state_that_is_given() -> None:
    model, frames = model_of("predrnn"), clip(frames=5)
    state = None
    with torch.no_grad():
        for t in range(2):
            _, state = model.step(frames[:, t], state)
    later = model.predict(frames[:, 2:], 2, state, seeded(), members=3)
    whole = model.predict(frames, 2, generator=seeded(), members=3)
    torch.testing.assert_close(later, whole, rtol=1e-9, atol=1e-12)


def test_states_of_xavier_are_shared_by_the_members() -> None:
    model, frames = model_of(init_state="xavier"), clip()
    members = model.predict(frames, 2, generator=seeded(), members=3, noise=0)
    alone = model.predict(frames, 2, generator=seeded())
    torch.testing.assert_close(members, alone[:, None].expand_as(members), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ensembles_in_other_dtypes(dtype: torch.dtype) -> None:
    model = model_of(dtype=dtype)
    members = model.predict(clip().to(dtype), 2, generator=seeded(), members=3)
    assert members.dtype == dtype and members.isfinite().all() and members.std(1).min() >= 0
    assert members.float().std(1).max() > 0


def test_no_sequences_have_no_members() -> None:
    assert model_of().predict(clip(batch=0), 2, members=3).shape == (0, 3, 2, 1, 16, 16)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"members": 0}, ValueError, "members is 0; it should be a whole number of at least 1"),
        ({"members": 1.5}, TypeError, "members is 1.5; it should be a whole number of at least 1"),
        (
            {"members": 2, "noise": float("nan")},
            ValueError,
            "noise is nan; it should be a number of at least 0",
        ),
        ({"members": 2, "noise": "a"}, TypeError, "noise is 'a'; it should be a number of at least 0"),
        ({"members": 2, "generator": 0}, TypeError, "generator is 0; it should be a torch.Generator"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as found:
        model_of().predict(clip(), 2, **options)
    assert message in str(found.value)


def test_noise_of_numpy() -> None:
    model = model_of()
    made = [
        model.predict(clip(), 2, members=2, noise=noise, generator=seeded())
        for noise in (0.5, np.float32(0.5))
    ]
    assert torch.equal(*made)
