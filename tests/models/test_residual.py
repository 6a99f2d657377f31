"""Is a prediction with `residual` the frame plus the model's change, and is the option kept with its model?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from case import generator
from comparing import assert_close

from motionrnn_ext import MotionRNN
from motionrnn_ext.models import load_checkpoint, save_official
from motionrnn_ext.training.config import Config


def rnn(predictor: str = "predrnn", **options: Any) -> MotionRNN:
    torch.manual_seed(0)
    return MotionRNN(predictor, 1, (4, 4), 2, filter_size=3, image_size=(8, 8), **options)


CLIP = torch.rand(2, 6, 1, 8, 8, generator=generator())


@pytest.mark.parametrize("predictor", ["convlstm", "predrnn", "mim", "e3d_lstm", "conv_tt_lstm"])
def test_a_prediction_is_the_frame_that_was_read_plus_the_change(predictor: str) -> None:
    """All frames are given, so that both models read the same, and differ by what they read."""
    plain, residual = rnn(predictor).double(), rnn(predictor, residual=True).double()
    clip = CLIP.double()
    assert_close(residual(clip, 6), plain(clip, 6) + clip[:, :-1], 1e-12)


def test_predictions_go_on_from_predictions() -> None:
    """Every prediction is the last given frame where W_last = 0, because nothing is added to it."""
    model = rnn(residual=True)
    torch.nn.init.zeros_(model.conv_last.weight)
    last = CLIP[:, 3:4]
    assert torch.equal(model.predict(CLIP[:, :4], 5), last.expand(-1, 5, -1, -1, -1))
    frame, state = model.step(CLIP[:, 3])
    assert torch.equal(frame, CLIP[:, 3]) and torch.equal(model.step(frame, state)[0], CLIP[:, 3])


def test_gradients_with_and_without_recomputing() -> None:
    """They are those of the plain model, to whose predictions the given frames are added here."""
    plain, residual = rnn().double(), rnn(residual=True).double()
    clip = CLIP.double()
    (plain(clip, 6) + clip[:, :-1]).square().mean().backward()
    wanted = [weight.grad for weight in plain.parameters()]
    for recomputed in (False, True):
        residual.zero_grad()
        residual(clip, 6, checkpoint=recomputed).square().mean().backward()
        for weight, grad in zip(residual.parameters(), wanted, strict=True):
            assert_close(weight.grad, grad, 1e-12)


def test_a_file_keeps_it(tmp_path: Path) -> None:
    model = rnn(residual=True)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert loaded.options.residual and torch.equal(loaded.predict(CLIP, 2), model.predict(CLIP, 2))
    with pytest.raises(ValueError, match="no public program has this model: .*residual is True"):
        save_official(
            rnn("predrnn", residual=True, motion_gru=False, highway=False), tmp_path / "official.ckpt"
        )


def test_settings_take_it_from_text() -> None:
    assert Config().changed({"overrides": {"residual": True}}).overrides == {"residual": True}
    with pytest.raises(TypeError, match="residual is 2; it should be True or False"):
        rnn(residual=2)
