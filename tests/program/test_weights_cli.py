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
from torch.nn.utils import prune

from motionrnn_ext import MotionRNN, cli
from motionrnn_ext.evaluation.scores import predict_clips
from motionrnn_ext.models import load_checkpoint, save_official
from motionrnn_ext.training.config import Config
from motionrnn_ext.training.runs import CONFIG_KEY, RunError, load_run, load_runs
from motionrnn_ext.training.weights import load_weights


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_dtype_read_float32_frames(dtype: torch.dtype, official: Path) -> None:
    made = MotionRNN("convlstm", 1, (4, 4), 4, filter_size=3).to(dtype)
    torch.save(made.state_dict(), "mine.pt")
    frames = np.random.default_rng(0).random((4, 16, 24), np.float32)
    np.save("clip.npy", frames)
    with pytest.warns(UserWarning, match=r"mine\.pt holds weights alone"):
        words = ("--frames", "clip.npy", "--n-input", 4, "--n-output", 2, "--out", "out")
        assert command("predict", "mine.pt", *words) == 0
    wanted = predict_clips(made.float().eval(), torch.from_numpy(frames)[None, :, None], 2)[0]
    torch.testing.assert_close(torch.from_numpy(np.load("out/prediction.npy")), wanted, rtol=0, atol=0)


def test_a_learned_alpha_outside_of_the_settings_range(official: Path) -> None:
    alpha = torch.nn.Parameter(torch.tensor(0.5))
    made = MotionRNN("convlstm", 1, (4, 4), 4, filter_size=3, alpha=alpha)
    alpha.data.fill_(1.25)
    torch.save(made.state_dict(), "learned.pt")
    with pytest.warns(UserWarning, match=r"learned\.pt holds weights alone"):
        run = load_run("learned.pt")
    assert run.model.options.alpha == 1.25 and "alpha" not in run.config.overrides
    with pytest.raises(
        RunError, match=r"alpha is learned \(1\.25\) there, 0\.5 here; interfaces\.0\.cell\.alpha is a"
    ):
        load_weights(MotionRNN("convlstm", 1, (4, 4), 4, filter_size=3), "learned.pt", Config())


def test_what_is_left_out_of_first_weights_is_told(official: Path) -> None:
    made = MotionRNN("convlstm", 1, (4, 4), 4, filter_size=3)
    averaged = {name: tensor + 1 for name, tensor in made.state_dict().items()}
    prune.l1_unstructured(made.conv_last, "weight", 0.5)
    torch.save({"params": made.state_dict(), "params_ema": averaged}, "two.pt")
    with pytest.warns(UserWarning) as said:
        load_weights(MotionRNN("convlstm", 1, (4, 4), 4, filter_size=3), "two.pt", Config())
    assert [str(w.message).partition(": ")[2] for w in said] == [
        "left out the weights params_ema, for those of params",
        "applied the pruning masks of 1 weights, which training may fill again: conv_last.weight",
    ]


def test_what_openstls_mim_carries_from_batch_to_batch_is_reset_before_each(official: Path) -> None:
    """`predict` and `evaluate` give a clip the same numbers after any other, with and without compat."""
    torch.manual_seed(0)
    options = {"filter_size": 3, "image_size": (8, 12), "motion_gru": False, "highway": False}
    made = MotionRNN("mim", 1, (4, 4, 4), 4, "official", compat="openstl", **options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_official(made, "mim.pt")
    clips, other = torch.rand(2, 3, 2, 1, 8, 12).unbind(1)[:2]
    with pytest.warns(UserWarning, match="holds weights alone"):
        carrying, fresh = (load_run("mim.pt", model={"compat": c}).model for c in ("openstl", None))
    first = predict_clips(carrying, clips, 2)
    predict_clips(carrying, other, 2)
    assert torch.equal(predict_clips(carrying, clips, 2), first)
    assert torch.equal(predict_clips(fresh, clips, 2), first)
    carrying.predict(other, 2)
    assert (carrying.predict(clips, 2).clamp(0, 1) - first).abs().max() > 1e-3  # as OpenSTL's test goes on


def test_first_weights_of_a_model_with_a_highway_in_one_without(official: Path) -> None:
    made, bare = (MotionRNN("convlstm", 1, (4, 4), 4, filter_size=3, highway=on) for on in (True, False))
    torch.save(made.state_dict(), "mine.pt")
    with pytest.warns(UserWarning, match="was trained with highway True, this run has False$"):
        load_weights(bare, "mine.pt", Config())
    torch.save(bare.state_dict(), "bare.pt")
    with pytest.warns(UserWarning, match="was trained with highway False, this run has True$"):
        load_weights(made, "bare.pt", Config())


def test_first_weights_compare_cell_options_with_their_defaults(official: Path) -> None:
    """OpenSTL's window of 2 frames is read off the weights, and is the default."""
    options = {"image_size": (8, 12), "motion_gru": False, "highway": False, "compat": "openstl"}
    torch.manual_seed(0)
    made = MotionRNN("e3d_lstm", 1, (4, 4), 4, "official", **options)
    save_official(made, "e3d.pt")
    torch.manual_seed(1)
    new = MotionRNN("e3d_lstm", 1, (4, 4), 4, "official", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(new, "e3d.pt", Config())
    assert all(tensor.equal(made.state_dict()[name]) for name, tensor in new.state_dict().items())
    recalling = MotionRNN("e3d_lstm", 1, (4, 4), 4, "official", cell_options={"history": 1}, **options)
    with pytest.raises(RunError, match=r"cell_options is .*'history': None.* there, .*'history': 1.* here"):
        load_weights(recalling, "e3d.pt", Config())


def test_weights_in_several_files(official: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = MotionRNN("convlstm", 1, (4, 4), 4, filter_size=3)
    names = list(made.state_dict())
    for i in (1, 2):
        torch.save(
            {n: made.state_dict()[n] for n in names[i - 1 :: 2]}, f"pytorch_model-0000{i}-of-00002.bin"
        )
    shards = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    index = Path("pytorch_model.bin.index.json")
    index.write_text(json.dumps({"weight_map": shards}))
    with pytest.warns(UserWarning, match=r"index\.json holds weights alone: assumed"):
        found = load_run(index).model
    assert all(tensor.equal(made.state_dict()[name]) for name, tensor in found.state_dict().items())
    assert command("predict", ".") == 2
    assert f"it should be a run's folder or a .ckpt file, such as its {index}" in capsys.readouterr().err
