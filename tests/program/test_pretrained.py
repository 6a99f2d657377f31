"""Folders of weights: what save_pretrained writes is what from_pretrained, load_checkpoint and the program read."""

from __future__ import annotations

import inspect
import json
import re
import shlex
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("safetensors", reason="the package safetensors is not installed")

from comparing import relative_error
from repository import ROOT
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune

from motionrnn_ext import MotionRNN
from motionrnn_ext.models import load_checkpoint
from motionrnn_ext.pretrained import shipped, shipped_folder

NAME = "vmnist-small"
OF_ITS_OWN = {"cell_options": {"history": 3}, "image_size": (16, 16)}


def model_of(predictor: str = "convlstm", **options: Any) -> MotionRNN:
    torch.manual_seed(0)
    return MotionRNN(predictor, 1, (4, 4), 2, filter_size=3, **options)


def predictions(model: MotionRNN) -> torch.Tensor:
    frames = torch.rand(2, 3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return model.predict(frames, 2)


# ---- In Python


@pytest.mark.parametrize(
    "predictor, options",
    [
        ("predrnn", {"layer_norm": True, "image_size": (16, 16)}),
        ("e3d_lstm", OF_ITS_OWN),
        ("conv_tt_lstm", {"variant": "official", "max_offset": None, "cell_options": {"order": 2}}),
        ("convlstm", {"motion_gru": False, "highway": False}),
    ],
)
def test_the_same_model_comes_back(predictor: str, options: dict[str, Any], tmp_path: Path):
    """A model is loaded with all of its arguments, and without a warning, because none is assumed."""
    model = model_of(predictor, **options)
    model.save_pretrained(tmp_path / "new/mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = MotionRNN.from_pretrained(tmp_path / "new/mine")
        also = [load_checkpoint(tmp_path / "new/mine" / name) for name in ("", "model.safetensors")]
    assert not found.training
    for each in (found, *also):
        assert each.arguments == model.arguments
        assert predictions(each).equal(predictions(model))
    assert sorted(path.name for path in (tmp_path / "new/mine").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_half_precision_is_for_the_disk_alone(dtype: torch.dtype, tmp_path: Path):
    model = model_of().to(dtype)
    model.save_pretrained(tmp_path, float16=True)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    for found in (MotionRNN.from_pretrained(tmp_path), load_checkpoint(tmp_path)):
        for parameter, original in zip(found.parameters(), model.parameters()):
            assert parameter.dtype == torch.float32
            assert parameter.equal(original.half().float())
    model.save_pretrained(tmp_path)
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert {p.dtype for p in MotionRNN.from_pretrained(tmp_path).parameters()} == {kept}


def test_a_learned_alpha_is_shared_again_and_pruning_is_applied(tmp_path: Path):
    torch.manual_seed(0)
    alpha = nn.Parameter(torch.tensor(0.3))
    model = MotionRNN("convlstm", 1, (4, 4, 4), 2, filter_size=3, alpha=alpha)
    prune.l1_unstructured(model.conv_last, "weight", 0.5)
    model.save_pretrained(tmp_path)
    found = MotionRNN.from_pretrained(tmp_path)
    assert found.interfaces[0].cell.alpha is found.interfaces[1].cell.alpha
    assert found.interfaces[0].cell.alpha.item() == pytest.approx(0.3)
    assert (found.conv_last.weight == 0).float().mean() == 0.5
    # A pruned convolution is called as a module, one with plain weights within a rollout; measured: 2e-7.
    assert relative_error(predictions(found), predictions(model)) < 5e-6


def test_what_cannot_be_saved_is_named_and_older_files_stay(tmp_path: Path):
    model_of().save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    class Mine(MotionRNN):
        def forward(self, *arguments: Any) -> Any:
            return 2 * super().forward(*arguments)

    message = "^model has code of its own, which no file of weights holds: Mine.forward of the model$"
    with pytest.raises(ValueError, match=message):
        Mine("convlstm", 1, (4, 4), 2).save_pretrained(tmp_path)
    apart = MotionRNN("convlstm", 1, (4, 4, 4), 2)
    apart.interfaces[1].cell.alpha = 0.7
    with pytest.raises(TypeError, match="alpha differs among the layers"):
        apart.save_pretrained(tmp_path)
    odd = model_of("conv_tt_lstm", cell_options={"order": 2})
    odd.arguments["cell_options"] = {"order": object()}
    with pytest.raises(TypeError, match="arguments that are no plain values, which config.json cannot hold"):
        odd.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="on the device meta, without values"):
        MotionRNN("convlstm", 1, (4, 4), 2, device="meta").save_pretrained(tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_damaged_folder_is_an_error(tmp_path: Path):
    model_of().save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, text = weights.read_bytes(), config.read_text()

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            MotionRNN.from_pretrained(tmp_path)

    weights.write_bytes(whole[:-1])
    refused("is truncated or no file of weights")
    weights.write_bytes(whole)
    config.write_text(text[:-4])
    refused(r"config.json' is no readable JSON file")
    config.write_text(text.replace('"convlstm"', '"unheard_of"'))
    refused("unheard_of")
    config.write_text(text.replace("[ 4, 4 ]", "[ 8, 8 ]"))
    refused("checkpoint does not fit: ")
    config.unlink()
    with pytest.raises(IsADirectoryError, match=r"it should be a file, such as its model\.safetensors"):
        MotionRNN.from_pretrained(tmp_path)


def test_weights_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("vmnist", "a/b/c", "https://huggingface.co/a/b"):
        with pytest.raises(FileNotFoundError, match=f"weights '{name}' are not there; .* or one of {NAME}"):
            MotionRNN.from_pretrained(name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match="'me/mine' need the package huggingface_hub: pip install"):
        MotionRNN.from_pretrained("me/mine")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (lambda: MotionRNN.from_pretrained(NAME), lambda: model_of().save_pretrained(tmp_path / "a")):
        with pytest.raises(
            ModuleNotFoundError, match="needs the package safetensors: pip install safetensors"
        ):
            call()


def test_a_folder_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The library is asked for the two files alone; a folder here with that name goes first."""
    hub, asked = types.ModuleType("huggingface_hub"), []

    def snapshot_download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo_id, revision, allow_patterns))
        return str(tmp_path / "cache")

    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    model_of().save_pretrained("cache")
    assert predictions(MotionRNN.from_pretrained("me/mine", revision="v1")).equal(predictions(model_of()))
    assert asked == [("me/mine", "v1", ["config.json", "model.safetensors"])]
    model_of("predrnn").save_pretrained("me/mine")
    assert MotionRNN.from_pretrained("me/mine").predictor == "predrnn"
    assert len(asked) == 1


def test_the_hubs_library_takes_these_arguments():
    hub = pytest.importorskip(
        "huggingface_hub", reason="the package huggingface_hub is not installed", exc_type=ImportError
    )
    assert {"repo_id", "revision", "allow_patterns"} <= inspect.signature(
        hub.snapshot_download
    ).parameters.keys()


# ---- The weights that come with the package


def test_shipped_weights_are_small_float16_and_have_a_card():
    assert NAME in shipped()
    for name in shipped():
        folder = shipped_folder(name)
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md",
            "config.json",
            "model.safetensors",
        ]
        assert (folder / "model.safetensors").stat().st_size < 2e6
        assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16}
        card = (folder / "README.md").read_text()
        assert all(f"## {heading}\n" in card for heading in ("Trained on", "Scores", "Licence"))
        settings = json.loads((folder / "config.json").read_text())["settings"]
        assert not settings.keys() & {"root", "init_from", "digits", "devices"}


# ---- The program


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for package in ("h5py", "lightning", "torchmetrics", "sklearn"):
        pytest.importorskip(package, reason="the training program's packages are not installed")
    from motionrnn_ext import cli

    monkeypatch.chdir(tmp_path)
    return lambda *words: cli.main([str(word) for word in words])


def test_shipped_weights_are_better_than_the_last_frame_again(program: Any):
    assert program("evaluate", NAME, "--clips", 16, "--pictures", 0) == 0
    models = json.loads(Path(f"runs/{NAME}/evaluation/metrics.json").read_text())["models"]
    (ours,) = (scores for label, scores in models.items() if label.startswith("MotionRNN"))
    assert ours["mse"] < 0.9 * models["repeat last frame"]["mse"]


@pytest.mark.parametrize("words", [("--pretrained", NAME), (NAME,)])
def test_predict_with_shipped_weights(
    words: tuple[str, ...], program: Any, capsys: pytest.CaptureFixture[str]
):
    """Nothing is written to the package, nor to a folder that would hide the name next time."""
    assert program("predict", *words, "--clip", 3) == 0
    assert (Path("runs") / NAME / "prediction" / "strip.png").is_file(), capsys.readouterr().out
    assert [path.name for path in Path().iterdir()] == ["runs"]
    for mistake in (["predict"], ["predict", NAME, "--pretrained", NAME]):
        with pytest.raises(SystemExit, match="2"):
            program(*mistake)
    assert "one of the arguments CKPT --pretrained is required" in capsys.readouterr().err


def test_finetune_shipped_weights_on_a_folder_of_frames(program: Any, capsys: pytest.CaptureFixture[str]):
    from PIL import Image

    model = MotionRNN.from_pretrained(NAME)
    for sequence in range(10):
        for frame in range(10):
            path = Path(f"frames/s{sequence}/{frame}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (64, 64), 20 * sequence + frame).save(path)
    data = ["--dataset", "frames", "--root", "frames"]
    sizes = ["--image-size", 64, 64, "--n-input", 5, "--n-output", 5]
    short = ["--steps", 1, "--val-every", 1, "--batch-size", 1, "--lr", 1e-9, "--no-progress"]
    assert program("train", "--out", "runs/mine", "--init-from", NAME, *data, *sizes, *short) == 0
    from motionrnn_ext.training.runs import load_run

    tuned = load_run("runs/mine")
    assert (tuned.config.dataset, tuned.config.hidden) == ("frames", model.hidden_channels)
    for now, before in zip(tuned.model.parameters(), model.parameters()):
        assert relative_error(now, before) < 1e-5
    assert program("evaluate", NAME, "runs/mine", *data, "--pictures", 0) == 0
    # Both models have one name, so that the rows have those of their folders.
    models = json.loads(Path(f"runs/{NAME}/evaluation/metrics.json").read_text())["models"]
    assert list(models)[-2:] == [NAME, "mine"]
    assert program("predict", "runs/mine", "--frames", "frames") == 2
    assert f"name one sequence, such as {Path('frames/s0')}" in capsys.readouterr().err


def test_a_run_is_exported_and_read_as_a_run(program: Any, trained: Path, capsys: pytest.CaptureFixture[str]):
    from motionrnn_ext.training.runs import load_run

    assert program("export", trained, "mine", "--float16") == 0
    said = capsys.readouterr().out
    assert "parameters in 0.0" in said and "next: motionrnn predict mine --frames path/to/frames" in said
    there, here = load_run("mine"), load_run(trained)
    assert there.step == here.step
    assert there.config.without_places() == here.config.without_places()
    for stored, original in zip(there.model.parameters(), here.model.parameters()):
        assert stored.equal(original.half().float())
    assert program("predict", "mine") == 0
    assert Path("mine/prediction/strip.png").is_file()
    before = Path("mine/config.json").read_bytes()
    assert program("export", trained, "mine") == 2
    assert "mine exists" in capsys.readouterr().err
    assert Path("mine/config.json").read_bytes() == before


def test_a_folder_without_settings_is_read_as_weights_alone(program: Any):
    from motionrnn_ext.training.runs import load_run

    model_of().save_pretrained("mine")
    with pytest.warns(
        UserWarning, match="mine/model.safetensors holds weights alone: taken as of moving_digits"
    ):
        run = load_run("mine")
    assert predictions(run.model).equal(predictions(model_of()))


def test_the_commands_of_the_page_are_those_of_the_program(program: Any):
    from motionrnn_ext.cli.parser import make_parser

    page = (ROOT / "docs/pretrained.md").read_text().replace("\\\n", " ")
    lines = re.findall("^motionrnn (.*)$", page, re.MULTILINE)
    assert len(lines) == 9
    for line in lines:
        make_parser().parse_args(shlex.split(line, comments=True))


def test_the_demo_shows_the_shipped_model_first(program: Any, capsys: pytest.CaptureFixture[str]):
    from motionrnn_ext.experiments import demo
    from motionrnn_ext.terminal.console import Console

    demo._show_shipped(Console(), Path("demo"))
    assert (
        "a prediction of vmnist-small, which comes with the package: demo/shipped" in capsys.readouterr().out
    )
    assert Path("demo/shipped_prediction.png").stat().st_size > 1000
