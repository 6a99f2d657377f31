"""Do the settings that make training fast (channels_last, a fused Adam, CUDA graphs) leave its numbers as they are?"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the training program's packages are not installed")

from replaying import replaying
from trainings import LAST, TINY, Stop, assert_same_training, checkpoint, run, stop_in_step

from motionrnn_ext.training.module import Training
from motionrnn_ext.training.runs import load_run


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    run(TINY, folder)
    return folder


def layouts(folder: Path) -> set[bool]:
    """Whether the weights of a run's last checkpoint, and what Adam keeps of them, have their channels last."""
    content = checkpoint(folder / LAST)
    weight = content["state_dict"]["model.interfaces.0.encoder.weight"]
    states = content["optimizer_states"][0]["state"].values()
    kept = [state["exp_avg"] for state in states if state["exp_avg"].shape == weight.shape]
    return {t.is_contiguous(memory_format=torch.channels_last) for t in [weight, *kept]}


def test_channels_last_changes_rounding_alone(unbroken: Path, tmp_path: Path) -> None:
    run(replace(TINY, channels_last=True), tmp_path / "run")
    a, b = (checkpoint(folder / LAST)["state_dict"] for folder in (unbroken, tmp_path / "run"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)
    assert layouts(unbroken) == {False} and layouts(tmp_path / "run") == {True}
    model = load_run(tmp_path / "run").model
    assert model.interfaces[0].encoder.weight.is_contiguous()


def test_a_run_is_resumed_in_another_layout(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fused Adam would take the elements of its state in the order of memory."""
    config = replace(TINY, channels_last=True)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_in_step(patch, 7)
        run(config, tmp_path / "run")
    run(replace(TINY, channels_last=False), tmp_path / "run", resume=True)
    a, b = (checkpoint(folder / LAST) for folder in (unbroken, tmp_path / "run"))
    for name in a["state_dict"]:
        torch.testing.assert_close(a["state_dict"][name], b["state_dict"][name], rtol=1e-3, atol=1e-4)
    assert layouts(tmp_path / "run") == {False}


@pytest.mark.parametrize(
    ("device", "settings", "wanted"),
    [
        ("cpu", {}, False),
        ("cpu", {"precision": "bf16-mixed"}, False),
        ("cpu", {"channels_last": True}, True),
        ("cuda", {}, True),
        ("cuda", {"precision": "bf16-mixed"}, True),
        ("cuda", {"channels_last": False}, False),
    ],
)
@pytest.mark.parametrize("tf32", [True, False])
def test_the_default_layout_is_that_of_the_device(
    device: str, settings: dict[str, Any], wanted: bool, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    place = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    monkeypatch.setattr(Training, "trainer", place)
    module = Training(replace(TINY, **settings))
    module.configure_model()
    weight = module.model.interfaces[0].encoder.weight
    # In float32 tensor cores are used with TF32 alone.
    wanted = wanted and (tf32 or device == "cpu" or bool(settings))
    assert weight.is_contiguous(memory_format=torch.channels_last) == wanted
    assert weight.is_contiguous() != wanted
    deep = Training(replace(TINY, predictor="e3d_lstm", precision="bf16-mixed"))
    deep.configure_model()
    assert all(p.is_contiguous() for p in deep.model.parameters())


def test_a_run_from_before_adam_was_fused_goes_on_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = torch.optim.Adam
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "Adam", lambda *args, **options: plain(*args, lr=options["lr"]))
        run(TINY, tmp_path / "unbroken")
        stop_in_step(patch, 7)
        with pytest.raises(Stop):
            run(TINY, tmp_path / "run")
    run(TINY, tmp_path / "run", resume=True)
    assert_same_training(tmp_path / "unbroken", tmp_path / "run")


def test_adam_is_fused_and_clips_as_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(TINY, steps=4, clip_norm=0.05)
    run(config, tmp_path / "fused")
    assert checkpoint(tmp_path / "fused" / LAST)["optimizer_states"][0]["param_groups"][0]["fused"] is True
    plain = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *args, **options: plain(*args, lr=options["lr"]))
    monkeypatch.delattr(Training, "configure_gradient_clipping")  # Lightning's own
    run(config, tmp_path / "plain")
    a, b = (checkpoint(tmp_path / name / LAST)["state_dict"] for name in ("fused", "plain"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "more", [{}, {"sampling": "reverse", "time_reversal": True}], ids=["linear", "reverse"]
)
def test_graphs_change_nothing(tmp_path: Path, more: dict[str, Any]) -> None:
    """Graphs of CPU tensors, played op by op, give the weights of the model itself; a resumed run records its own."""
    overrides = {"init_state": "xavier"} if more else {}
    config = replace(TINY, predictor="predrnn", accelerator="auto", steps=5, overrides=overrides, **more)
    run(config, tmp_path / "plain")
    with replaying() as graphs:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
            stop_in_step(patch, 4)
            run(replace(config, graph=True), tmp_path / "graph")
        assert [graph.replays for graph in graphs] == [4, 4]
        run(config, tmp_path / "graph", resume=True)
        assert len(graphs) == 2
    a, b = (checkpoint(tmp_path / name / LAST)["state_dict"] for name in ("plain", "graph"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accelerator": "cpu"}, "graph must be off with accelerator=cpu: CUDA graphs need a GPU; got True"),
        ({"devices": 2}, "graph must be off with several processes, whose gradients are joined outside"),
        (
            {"checkpoint_steps": True},
            "graph must be off with checkpoint_steps, whose steps are computed again",
        ),
        (
            {"predictor": "mim", "compat": "openstl"},
            "graph must be off with mim and compat=openstl; got True",
        ),
    ],
)
def test_a_graph_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(TINY, **{"accelerator": "auto", "graph": True, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"graph": True}, "graph must be off on cpu: CUDA graphs need a GPU; got True"),
        (
            {"predictor": "e3d_lstm", "channels_last": True},
            "channels_last must be off for e3d_lstm, whose maps have a depth axis; got True",
        ),
    ],
)
def test_what_does_not_fit_the_device_or_the_model_is_named_before_the_folder_is_made(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run(replace(TINY, accelerator="auto", **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
