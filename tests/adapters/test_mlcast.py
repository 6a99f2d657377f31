"""Does mlcast train and predict with a MotionRNN?"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from motionrnn_ext import MotionRNN
from motionrnn_ext.adapters.mlcast import MotionRNNNetwork


def network(**options: float) -> MotionRNNNetwork:
    torch.manual_seed(0)
    return MotionRNNNetwork(MotionRNN("predrnn", 1, (4, 4), 2, dtype=torch.float64), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [1, 3])
def test_a_forecast_is_that_of_the_model(given: int) -> None:
    net, x = network(), torch.rand(2, given, 1, 8, 12, dtype=torch.float64) * 2 - 1
    wanted = 2 * net.model.predict((x + 1) / 2, 4) - 1
    torch.testing.assert_close(net(x, 4), wanted)
    torch.testing.assert_close(net(x, steps=4, ensemble_size=1), wanted)


@pytest.mark.parametrize("given", [1, 3])
def test_an_ensemble_is_that_of_the_model(given: int) -> None:
    net, x = network(noise=0.5), torch.rand(2, given, 1, 8, 8, dtype=torch.float64) * 2 - 1
    torch.manual_seed(3)
    found = net(x, 4, ensemble_size=3)
    torch.manual_seed(3)
    wanted = net.model.predict((x + 1) / 2, 4, members=3, noise=0.5)  # (B, N, T, C, H, W)
    torch.testing.assert_close(found, 2 * wanted.transpose(1, 2).flatten(2, 3) - 1)


@pytest.mark.parametrize("members", [1, 2])
def test_gradients(members: int) -> None:
    net = network(noise=0.0)
    x = torch.rand(1, 2, 1, 8, 8, dtype=torch.float64) * 2 - 1
    net(x, 3, members).square().mean().backward()
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    # Without noise all members are the model's own rollout.
    frames = torch.cat([(x + 1) / 2, x.new_zeros(1, 3, 1, 8, 8)], 1)
    (2 * net.model(frames, 2)[:, 1:] - 1).square().mean().backward()
    assert found.keys() == {name for name, p in net.named_parameters() if p.grad is not None}
    for name, p in net.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], p.grad)


def test_any_size_and_missing_values() -> None:
    net = network()
    x = torch.rand(1, 2, 1, 7, 9, dtype=torch.float64) * 2 - 1
    x[..., :2] = -1
    missing = x.clone()
    missing[..., :2] = torch.nan
    found = net(missing, 2)
    assert found.shape == (1, 2, 1, 7, 9)
    torch.testing.assert_close(found, net(x, 2))
    larger = torch.nn.functional.pad(x[0], (0, 3, 0, 1), mode="replicate")[None]
    torch.testing.assert_close(found, net(larger, 2)[..., :7, :9])


def test_mlcast_trains_and_predicts(tmp_path) -> None:
    pytest.importorskip(
        "mlcast.nowcasting_module", reason="mlcast is not installed", exc_type=ImportError
    )  # it imports torchvision
    import pytorch_lightning as pl
    from mlcast.nowcasting_module import NowcastLightningModule

    module = NowcastLightningModule(network().float(), ensemble_size=2, loss_class="crps")
    clip = torch.rand(6, 1, 8, 8) * 2 - 1
    loader = torch.utils.data.DataLoader([{"input": clip[:3], "target": clip[3:]}] * 4, batch_size=2)
    before = {name: p.clone() for name, p in module.named_parameters()}
    options = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        limit_val_batches=1,
        **options,
    )
    trainer.fit(module, loader, loader)
    assert trainer.global_step == 2 and trainer.callback_metrics["val_loss"].isfinite()
    assert all((p != before[name]).any() for name, p in module.named_parameters() if p.grad is not None)
    rates = module.predict(torch.rand(3, 7, 9) * 10, forecast_steps=4, ensemble_size=5)
    assert rates.shape == (5, 4, 7, 9) and np.isfinite(rates).all() and (rates >= 0).all()
    assert (rates[0] != rates[1]).any()
