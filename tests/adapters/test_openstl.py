"""Does OpenSTL's own experiment train and test a MotionRNN, and are its numbers those of our model?"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_program import OPENSTL

from motionrnn_ext import MotionRNN
from motionrnn_ext.models import load_checkpoint
from motionrnn_ext.models.patches import fold_patches

if OPENSTL is None:
    pytest.skip(
        "MOTIONRNN_EXT_OPENSTL is unset: no checkout of chengtan9907/OpenSTL", allow_module_level=True
    )
if OPENSTL not in sys.path:
    sys.path.append(OPENSTL)
pytest.importorskip("openstl.api", reason="what OpenSTL needs is not installed", exc_type=ImportError)

from openstl.api import BaseExperiment
from openstl.utils import default_parser
from pytorch_lightning import Trainer

from motionrnn_ext.adapters.openstl import MotionRNNMethod, register

SIZE, GIVEN, FUTURE = 16, 3, 2


class Clips(torch.utils.data.Dataset):
    """Clips as OpenSTL's data sets give them."""

    mean, std, data_name = 0, 1, "custom"

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        clip = torch.rand(GIVEN + FUTURE, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(index))
        return clip[:GIVEN], clip[GIVEN:]


class OnCPU(BaseExperiment):
    """OpenSTL's experiment, whose trainer asks for a GPU."""

    def _init_trainer(self, args: Any, callbacks: Any, strategy: str) -> Trainer:
        return Trainer(
            max_epochs=args.epoch,
            accelerator="cpu",
            callbacks=callbacks,
            enable_progress_bar=False,
        )


def settings(folder: Path, **changed: Any) -> dict[str, Any]:
    own = {
        "method": "motionrnn", "dataname": "custom", "metrics": ["mse", "mae"], "device": "cpu", "epoch": 1,
        "in_shape": [GIVEN, 1, SIZE, SIZE], "pre_seq_length": GIVEN, "aft_seq_length": FUTURE,
        "total_length": GIVEN + FUTURE, "patch_size": 2, "num_hidden": "4,4", "filter_size": 3, "stride": 1,
        "layer_norm": 0, "reverse_scheduled_sampling": 0, "scheduled_sampling": 1, "sampling_stop_iter": 50,
        "sampling_start_value": 1.0, "sampling_changing_rate": 0.1, "r_sampling_step_1": 2, "r_sampling_step_2": 4,
        "r_exp_alpha": 2, "res_dir": str(folder), "ex_name": "mine", "no_display_method_info": True, "lr": 1e-3,
    }  # fmt: skip
    return {**default_parser(), **own, **changed}


def method(folder: Path, **changed: Any) -> MotionRNNMethod:
    torch.manual_seed(0)
    return MotionRNNMethod(
        steps_per_epoch=3, test_mean=0, test_std=1, save_dir=str(folder), **settings(folder, **changed)
    )


@pytest.mark.parametrize("is_reverse", [0, 1])
def test_openstl_trains_and_tests_it(
    is_reverse: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    monkeypatch.chdir(tmp_path)
    loader = torch.utils.data.DataLoader(Clips(), batch_size=2)
    options = {"motionrnn": {"predictor": "convlstm"}, "reverse_scheduled_sampling": is_reverse}
    args = Namespace(**settings(tmp_path, **options))
    experiment = OnCPU(args, dataloaders=(loader, loader, loader), strategy="auto")
    before = [p.clone() for p in experiment.method.parameters()]
    experiment.train()
    assert experiment.trainer.global_step == 3
    moved = [(p != q).any().item() for p, q in zip(experiment.method.parameters(), before)]
    assert sum(moved) > 0.9 * len(moved)
    experiment.test()
    saved = np.load(tmp_path / "mine" / "saved" / "preds.npy")
    assert saved.shape == (6, FUTURE, 1, SIZE, SIZE)

    # The checkpoint is that of a MotionRNN, and predicts what OpenSTL has saved.
    loaded = load_checkpoint(experiment.method.model.network.state_dict())
    given = torch.stack([Clips()[i][0] for i in range(6)])
    torch.testing.assert_close(loaded.predict(given, FUTURE), torch.from_numpy(saved), rtol=1e-4, atol=1e-5)


def test_losses_and_predictions_are_those_of_the_model(tmp_path: Path) -> None:
    made = method(tmp_path, motionrnn={"variant": "official", "init_state": "zeros"})
    network = made.model.network
    assert isinstance(network, MotionRNN) and network.predictor == "predrnn"
    frames = torch.rand(2, GIVEN + FUTURE, 1, SIZE, SIZE)
    folded = fold_patches(frames, 2).movedim(2, -1)
    mask = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1, 1).expand(2, FUTURE - 1, 8, 8, 4)
    predictions, loss = made.model(folded, mask)
    wanted = network(frames, GIVEN, mask[..., :1, :1, :1])
    torch.testing.assert_close(predictions, fold_patches(wanted, 2).movedim(2, -1))
    torch.testing.assert_close(loss, (wanted - frames[:, 1:]).square().mean())
    with torch.no_grad():
        found = made(frames[:, :GIVEN], frames[:, GIVEN:])
    torch.testing.assert_close(found, network.predict(frames[:, :GIVEN], FUTURE), rtol=1e-4, atol=1e-5)


def test_without_sampling(tmp_path: Path) -> None:
    """OpenSTL then gives the mask as an array of NumPy."""
    made = method(tmp_path, scheduled_sampling=0)
    clips = torch.rand(2, GIVEN, 1, SIZE, SIZE), torch.rand(2, FUTURE, 1, SIZE, SIZE)
    made.log = lambda *_, **__: None
    made.training_step(clips, 0).backward()
