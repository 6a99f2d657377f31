"""`motionrnn evaluate` and `predict` on weights alone, of a public program or a state dict: what they assume is told,
and the numbers are those of the model that load_checkpoint makes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("h5py", reason="the training program's packages are not installed")
pytest.importorskip("lightning", reason="the training program's packages are not installed")
pytest.importorskip("torchmetrics", reason="the training program's packages are not installed")

import numpy as np

from motionrnn_ext import MotionRNN, cli
from motionrnn_ext.evaluation.scores import predict_clips
from motionrnn_ext.models import load_checkpoint, save_official
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.runs import CONFIG_KEY, RunError, load_run, load_runs


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_official(MotionRNN("predrnn", 1, (4, 4), 4, "official", filter_size=3), "model.ckpt-80000")
    return Path("model.ckpt-80000")


def run_file(**settings) -> Path:
    config = Config(hidden=(4, 4), filter_size=3, **settings)
    weights = {f"model.{name}": t for name, t in MotionRNN(**config.model()).state_dict().items()}
    torch.save({CONFIG_KEY: config.to_dict(), "state_dict": weights, "global_step": 7}, "best.ckpt")
    return Path("best.ckpt")


def command(*words: object) -> int:
    return cli.main([str(word) for word in words])


def test_evaluate_takes_an_official_checkpoint(official: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"holds weights alone: taken as of moving_digits, 64x64, 10 frames in and 10 out"
    ):
        assert (
            command("evaluate", official, "--clips", 1, "--pictures", 0, "--n-output", 2, "--out", "out") == 0
        )
    written = json.loads(Path("out/metrics.json").read_text())
    assert (written["dataset"], written["n_input"], written["n_output"]) == ("moving_digits", 10, 2)
    about = written["models"]["MotionRNN-PredRNN"]
    assert about["step"] is None and about["checkpoint"] == str(official)


def test_the_data_set_is_the_one_that_is_named(official: Path) -> None:
    with pytest.warns(UserWarning) as said:
        run = load_run(official, "radar_like")
    assert {w.filename for w in said} == {__file__}
    assert [str(w.message) for w in said] == [
        f"{official} holds weights alone: taken as of radar_like, 64x64, 5 frames in and 10 out"
    ]
    assert run.config.dataset == "radar_like" and MotionRNN(**run.config.model()).options == run.model.options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"frames fold to 16 channels .* in_channels=3"):
            load_run(official, "human36m")
        torch.save(MotionRNN("convlstm", 3, (4, 4), 4, filter_size=3).state_dict(), "rgb.pt")
        assert load_run("rgb.pt").config.dataset == "human36m"
        with pytest.raises(ValueError, match="in_channels is 1; it should be 3, as the checkpoint says"):
            load_run("rgb.pt", "moving_digits")
        torch.save(MotionRNN("convlstm", 2, (4, 4), 4, filter_size=3).state_dict(), "two.pt")
        with pytest.raises(RunError, match=r"two\.pt holds a model with 2 channels; name a data set"):
            load_run("two.pt")
        made = MotionRNN("mim", 1, (4, 4), 4, filter_size=3, image_size=(32, 48), trend=False)
        torch.save(made.state_dict(), "mim.pt")
        config = load_run("mim.pt").config
        assert config.image_size == (32, 48) and not config.trend


def test_what_no_tensor_shows_is_given_as_options(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The state dict was copied and tells nothing; a run beside it tells all."""
    torch.manual_seed(0)
    made = MotionRNN("convlstm", 1, (4, 4), 2, "official", filter_size=3, trend=False, alpha=0.9)
    torch.save(dict(made.state_dict()), "copied.pt")
    np.save("clip.npy", np.random.default_rng(0).random((4, 16, 24), np.float32))
    words = ["--frames", "clip.npy", "--n-input", 4, "--n-output", 2, "--patch-size", 2]
    with pytest.warns(
        UserWarning,
        match=r"copied\.pt holds weights alone: assumed transient=True, trend=True, alpha=0\.5, carry='motion', .*"
        r" no tensor shows; give what differs \(--transient, --trend, --override\)",
    ):
        assert command("predict", "copied.pt", *words, "--out", "assumed") == 0
    words += ["--no-trend", "--override", "alpha=0.9"]
    with pytest.warns(
        UserWarning, match=r"assumed transient=True, carry='motion', .*\(--transient, --override\)"
    ):
        assert command("predict", "copied.pt", *words, "--out", "given") == 0
    frames = torch.from_numpy(np.load("clip.npy"))[None, :, None]
    wanted = predict_clips(made.eval(), frames, 2)[0]
    torch.testing.assert_close(torch.from_numpy(np.load("given/prediction.npy")), wanted, rtol=0, atol=1e-6)
    assert not np.array_equal(np.load("given/prediction.npy"), np.load("assumed/prediction.npy"))
    best = run_file(dataset="radar_like", n_input=3, n_output=2, image_size=(32, 32))
    capsys.readouterr()
    assert command("predict", best, "--no-trend", "--override", "alpha=0.9") == 2
    assert (
        "best.ckpt is a run's checkpoint, whose settings describe its model; leave out --trend, --override"
        in (capsys.readouterr().err)
    )
    with pytest.warns(UserWarning):
        assert command("predict", "copied.pt", "--override", "alfa=1", "--out", "out") == 2
        words = ["--clips", 1, "--pictures", 0, "--no-trend", "--patch-size", 2, "--out", "scored"]
        assert command("evaluate", best, "copied.pt", *words) == 0
    assert "copied.pt: unknown option 'alfa'" in capsys.readouterr().err
    with pytest.warns(UserWarning):
        words = ["--image-size", 48, 64, "--no-trend", "--patch-size", 2, "--n-output", 1, "--out", "sized"]
        assert command("visualize", "copied.pt", *words) == 0


def test_beside_a_run_it_is_scored_on_the_runs_data(official: Path) -> None:
    best = run_file(dataset="radar_like", n_input=3, n_output=2, image_size=(32, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        configs = [run.config for run in load_runs([official, best])]
    assert {(c.dataset, c.image_size, c.n_input) for c in configs} == {("radar_like", (32, 32), 3)}


def test_predict_takes_a_state_dict_and_own_frames(official: Path) -> None:
    torch.manual_seed(0)
    made = MotionRNN("convlstm", 1, (4, 4), 4, filter_size=3, trend=False, alpha=0.9)
    torch.save(made.state_dict(), "mine.pt")
    frames = np.random.default_rng(0).random((4, 16, 24), np.float32)
    np.save("clip.npy", frames)
    with pytest.warns(UserWarning, match=r"mine\.pt holds weights alone"):
        words = ("--frames", "clip.npy", "--n-input", 4, "--n-output", 2, "--out", "out")
        assert command("predict", "mine.pt", *words) == 0
    wanted = predict_clips(load_checkpoint("mine.pt").eval(), torch.from_numpy(frames)[None, :, None], 2)[0]
    torch.testing.assert_close(torch.from_numpy(np.load("out/prediction.npy")), wanted, rtol=0, atol=0)
