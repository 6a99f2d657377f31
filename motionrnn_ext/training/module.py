"""The Lightning module that trains a MotionRNN, and its scheduled sampling."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torchmetrics import SumMetric

from ..graphs import GraphedRollout, graphed
from ..metrics import FrameMetrics
from ..models import MotionRNN
from ..pixels import filled
from .config import Config
from .losses import TERMS, levels_of, terms_of
from .runs import CONFIG_KEY, NotFinite

# The second number in the key of each random stream. Clips and their order use 0 to 3.
_SAMPLING, _STATE = 4, 5
_ADVICE = "a lower lr, or a clip_norm, may keep the training finite"


def sampling_probabilities(config: Config, step: int) -> tuple[float, float]:
    """Return the probabilities of reading a true frame in optimiser step `step`: at the given frames 1..n_input-1, and
    at later frames.

    With p = step / (sampling_until * steps), where p = 1 corresponds to iteration 50,000 of the official programs:

        linear     1, 1 - p                                          MotionRNN's program
        reverse    .5, .5 up to p = .5, then
                   1 - .5 exp(-10 (p - .5)), 1 - p                   PredRNN-V2's program, alpha = 5,000
        both       1, 0 from p = 1 on
        none       1, 0
    """
    p = step / (config.sampling_until * config.steps)
    if config.sampling == "none" or p >= 1:
        return 1.0, 0.0
    if config.sampling == "linear":
        return 1.0, 1 - p
    return (0.5, 0.5) if p < 0.5 else (1 - 0.5 * math.exp(-10 * (p - 0.5)), 1 - p)


def sampling_mask(
    config: Config, step: int, batch_size: int, rank: int = 0, n_ranks: int = 1
) -> Tensor | None:
    """Return a mask that is 1 where the true frame is read and 0 where the prediction is, or None without sampling.

    Its shape is (B, n_output-1, 1, 1, 1), or (B, T-2, 1, 1, 1) if inputs are sampled too. Each of several ranks gets
    its rows of the mask that one rank would draw for the joint batch, as `StepBatches` distributes the clips.
    """
    given, generated = sampling_probabilities(config, step)
    if config.sampling == "none":
        return None
    chances = [generated] * (config.n_output - 1)
    if config.sampling == "reverse":
        chances = [given] * (config.n_input - 1) + chances
    stream = np.random.default_rng([config.seed, _SAMPLING, step, 0])
    drawn = stream.random((batch_size * n_ranks, len(chances)))[rank::n_ranks]
    return torch.from_numpy(drawn < np.array(chances)).float()[..., None, None, None]


def has_depth(model: MotionRNN) -> bool:
    """Return whether the model has weights with a depth axis, which channels_last does not know."""
    return any(p.dim() == 5 for p in model.parameters())


def check_layout(config: Config, model: MotionRNN) -> None:
    """Raise a ValueError if the model cannot be laid out as the settings say."""
    if config.channels_last and has_depth(model):
        raise ValueError(
            f"channels_last must be off for {config.predictor}, whose maps have a depth axis; got True"
        )


class Training(L.LightningModule):
    """The training of a MotionRNN: the loss over all T-1 predictions, scheduled sampling, Adam and validation."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.train_loss = config, torch.zeros(())
        self.model = MotionRNN(**config.model())
        self._rollout: GraphedRollout | None = None
        # The validation's metrics and loss are joined over the processes. Lightning's own mean would be wrong where
        # processes have different numbers of clips.
        self.metrics = FrameMetrics(config.n_output)
        # Two sums, because torchmetrics' MeanMetric ignores its weights when it is told to keep nan.
        self.loss, self.loss_weight = SumMetric(nan_strategy="disable"), SumMetric(nan_strategy="disable")

    def training_step(self, frames: Tensor, batch_index: int) -> Tensor:
        config, step = self.config, self.global_step
        # With compat="openstl" cells keep a state between calls: a resumed run would differ from an unbroken one.
        self.model.reset()
        mask = sampling_mask(config, step, len(frames), self.global_rank, config.n_processes)
        if config.time_reversal:  # both directions share the mask, as in the official program
            frames = torch.cat([frames, frames.flip(1)])
            mask = None if mask is None else torch.cat([mask, mask])
        if config.missing is not None:
            self.log("train/missing", frames.isnan().float().mean())
        given = frames if config.missing is None else filled(frames)
        mask = None if mask is None else mask.to(frames.device)
        generator = self._generator(step)
        if config.graph:
            predictions = self._graphed(given)(given, mask, generator=generator)
        else:
            predictions = self.model(
                given,
                config.n_input,
                mask,
                reverse_sampling=config.sampling == "reverse",
                generator=generator,
                checkpoint=config.checkpoint_steps,
            )
        loss, _ = self._loss(predictions, frames[:, 1:], joined=config.n_processes > 1)
        self.train_loss = loss.detach()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/sampling", sampling_probabilities(config, step)[1])
        return loss

    def configure_model(self) -> None:
        """Lay the model out as the settings say, or by default as the device likes it."""
        device, wanted = self.trainer.strategy.root_device.type, self.config.channels_last
        if wanted is None and not has_depth(self.model) and device == "cuda":
            wanted = self.config.precision != "32" or torch.backends.cudnn.allow_tf32
        layout = torch.channels_last if wanted else torch.contiguous_format
        self.model.to(memory_format=layout)  # type: ignore[call-overload]

    def on_train_start(self) -> None:
        """Lay the optimiser's state out as the weights are: a run may be resumed in another layout, and a fused Adam
        on the CPU goes through the memory of both in step, without a look at the strides (torch 2.13)."""
        for optimizer in self.trainer.optimizers:
            for p, state in optimizer.state.items():
                for name, value in state.items():
                    if value.shape == p.shape and value.stride() != p.stride():
                        state[name] = torch.empty_like(p).copy_(value)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradient as Lightning does, which refuses this for a fused optimiser under autocast:
        gradients of bfloat16 are not scaled."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise NotFinite, in all processes together, before a loss or gradient that is not finite changes weights."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        found = torch.stack([self.train_loss, torch.nn.utils.get_total_norm(gradients)]).float()
        if self.config.n_processes > 1:  # gradients are the same in all processes, losses are not
            finite = found.isfinite().float()
            torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
            found = torch.where(finite.bool() | ~found.isfinite(), found, math.nan)
        for name, value in zip(("loss", "norm of the gradient"), found.tolist()):
            if not math.isfinite(value):
                raise NotFinite(f"the {name} is {value} in step {self.global_step + 1:,}; {_ADVICE}")

    def on_train_batch_start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.log("train/seconds", time.perf_counter() - self._started)
        if self.global_step >= self.config.steps:
            # Lightning then validates after the last step, whatever val_every is.
            self.trainer.should_stop = True

    def validation_step(self, frames: Tensor, batch_index: int) -> None:
        self.model.reset()
        n_input, generator = self.config.n_input, self._generator(batch_index)
        given = filled(frames[:, :n_input])
        prediction = self.model.predict(given, self.config.n_output, generator=generator)
        self.metrics.update(prediction.float(), frames[:, n_input:])
        loss, weight = self._loss(prediction, frames[:, n_input:])
        self.loss.update(loss * weight)
        self.loss_weight.update(weight)

    def on_validation_epoch_end(self) -> None:
        result = {**self.metrics.compute(), "loss": self.loss.compute() / self.loss_weight.compute()}
        self.metrics.reset()
        self.loss.reset()
        self.loss_weight.reset()
        for name in ("loss", "mse"):
            if not math.isfinite(result[name]):
                why = "its true frames have no data" if result["missing"] == 1 else _ADVICE
                raise NotFinite(
                    f"the {name} of the validation after step {self.global_step:,} is {float(result[name])}; {why}"
                )
        for name in (*self.metrics.names, "loss"):
            self.log(f"val/{name}", result[name], prog_bar=name == "mse", rank_zero_only=True)

    def configure_optimizers(self) -> Any:
        config = self.config
        # One pass over the memory of all weights. On other devices PyTorch chooses.
        is_fused = self.device.type in ("cpu", "cuda") or None
        optimizer = torch.optim.Adam(self.parameters(), lr=config.lr, fused=is_fused)
        if config.lr_schedule == "constant":
            return optimizer
        # A rise of exactly one step would be divided by its length, 0.
        rise = 0.1 if config.steps != 9 else 0.11
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.lr, total_steps=config.steps + 1, pct_start=rise, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, parameter in self.named_parameters():
            if not parameter.isfinite().all():
                raise NotFinite(f"{name} is not finite after step {self.global_step:,}")
        checkpoint[CONFIG_KEY] = self.config.to_dict()

    def _graphed(self, frames: Tensor) -> GraphedRollout:
        """Return the model's rollout in CUDA graphs, recorded in the first step for such frames."""
        if self._rollout is None:
            config = self.config
            self._rollout = graphed(
                self.model,
                frames,
                config.n_input,
                sampling=config.sampling != "none",
                reverse_sampling=config.sampling == "reverse",
            )
        return self._rollout

    def _loss(self, prediction: Tensor, truth: Tensor, joined: bool = False) -> tuple[Tensor, Any]:
        """Return the loss, means over the true values, and the weight of this batch in a mean over batches.

        Missing values are left out. If `joined`, the loss is scaled so that its mean over processes is the mean over
        all their values.
        """
        prediction, config, names = prediction.float(), self.config, terms_of(self.config.loss)
        weights = {"l1": config.l1_weight, "ssim": config.ssim_weight, "gdl": config.gdl_weight}
        means = []
        for name in names:
            options = (levels_of(config.dbz, config.zr),) if name == "balanced" and config.dbz else ()
            means.append(TERMS[name](prediction, truth, *options))
        counts = torch.stack([mean.number for mean in means]).float()
        if joined and config.missing is not None:
            torch.distributed.all_reduce(counts, torch.distributed.ReduceOp.SUM)
            counts = counts / config.n_processes
        totals = [weights.get(name, 1.0) * mean.total for name, mean in zip(names, means)]
        loss = (torch.stack(totals) / counts.clamp(min=1)).sum()
        if config.missing is None:
            # A true value that is nan is a mistake if it is not declared, and makes the loss nan, which is noticed.
            return loss + 0 * truth.sum(), len(truth)
        return loss, (~truth.isnan()).sum().float()

    def _generator(self, index: int) -> torch.Generator | None:
        """Return a generator for the model's random initial state, or None if that state is zeros."""
        if self.model.options.init_state == "zeros":
            return None
        key = [self.config.seed, _STATE, int(self.training), index, self.global_rank]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        return torch.Generator(self.device).manual_seed(seed)
