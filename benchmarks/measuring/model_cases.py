"""Define what a row of a whole model measures: a training step, or the prediction of a clip's next frames.

The model is a MotionRNN-PredRNN, by these implementations:

ours                       the package's kernels
ours, without MotionGRU    the Motion Highway alone
base predictor             PredRNN, without MotionGRU and Motion Highway
reference                  the package's plain PyTorch
official                   the released program's network, its frames folded beforehand

or a base predictor alone, without MotionGRU and Motion Highway:

ours                       the package's kernels
openstl                    OpenSTL's network, its frames folded beforehand

All have the same weights, N(0, 1/fan_in). MotionRNN-PredRNN starts from the official random states, which every call
draws, and base predictors from zeros. A training step is forward, the mean squared error of all predictions, and its
gradients by all parameters; no optimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motionrnn_ext import MotionRNN, backend
from motionrnn_ext.models import official_name
from motionrnn_ext.models.checkpoints.names import to_ours
from motionrnn_ext.models.patches import fold_patches, unfold_patches

from ..cases import ModelSetting
from . import counting, subjects, timing
from .op_cases import LAYOUTS, largest_difference
from .subjects import NO_PROGRAMS, Programs, Row, Unavailable

TRAINING, INFERENCE = "training step", "inference"
PARTS: dict[str, dict[str, Any]] = {
    "ours, without MotionGRU": {"motion_gru": False},
    "base predictor": {"motion_gru": False, "highway": False},
}


class Base(NamedTuple):
    """A base predictor: its name on the pages, and how `MotionRNN` computes what OpenSTL's network does."""

    title: str
    per_position: bool = False  # whether its parameters need the size of the frames
    compat: str | None = None


BASES = {
    "convlstm": Base("ConvLSTM"),
    "predrnn": Base("PredRNN"),
    "mim": Base("MIM", per_position=True, compat="openstl"),
    "e3d_lstm": Base("E3D-LSTM", per_position=True, compat="openstl"),
}
SEED = 7  # draws the initial states where results are compared
Exact = tuple[Tensor, list[Tensor]]  # predictions, and gradients in the order of our parameters
Run = Callable[[], Any]


@dataclass(frozen=True)
class ModelCase:
    """A model's setting, dtype and direction (TRAINING or INFERENCE); `base` is a key of BASES, or None."""

    setting: ModelSetting
    dtype: str
    direction: str
    base: str | None = None

    def __str__(self) -> str:
        return f"{self.title} {self.setting.name} {self.direction} {self.setting} {self.dtype}"

    @property
    def title(self) -> str:
        return "MotionRNN-PredRNN" if self.base is None else BASES[self.base].title

    def identity(self) -> dict[str, Any]:
        return {"level": "model", "op": self.title, "setting": self.setting.name,
                "shape": str(self.setting), "dtype": self.dtype, "direction": self.direction,
                "offset_scale": 1.0}  # fmt: skip

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def tolerance(self) -> float:
        """The limit of the difference, rounding at every step and layer included; see `op_cases.Case.tolerance`."""
        return {"float32": 2e-2, "bfloat16": 0.3}[self.dtype]

    def frames(self, device: str) -> Tensor:
        """Return frames (B, T, C, H, W) in [0, 1]."""
        s, generator = self.setting, torch.Generator().manual_seed(0)
        frames = torch.rand((s.batch, s.total, s.channels, s.size, s.size), generator=generator)
        return frames.to(device, self.torch_dtype)

    def model(self, name: str) -> MotionRNN:
        """Return a model with an implementation's architecture, in float32 on the CPU."""
        s = self.setting
        options: dict[str, Any] = {"init_state": "xavier", **PARTS.get(name, {})}
        if self.base is not None:
            base, size = BASES[self.base], (s.size, s.size)
            options = {"motion_gru": False, "highway": False, "compat": base.compat,
                       "image_size": size if base.per_position else None}  # fmt: skip
        model = MotionRNN(self.base or "predrnn", s.channels, s.hidden, s.patch, "official",
                          filter_size=s.filter_size, **options)  # fmt: skip
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                fan_in = parameter[0].numel() if parameter.dim() > 1 else 10
                parameter.normal_(0, fan_in**-0.5, generator=generator)
        return model


@dataclass
class Net:
    """An implementation on a clip.

    losses: returns the predictions (B, T-1, C, H, W) and their loss. predict: returns the frames that follow the given
    ones. parameters: in our order, whatever the implementation, unless `restore` turns their gradients into ours.
    """

    module: nn.Module
    losses: Callable[[], tuple[Tensor, Tensor]]
    predict: Callable[[], Tensor]
    parameters: list[Tensor] = field(default_factory=list)
    can_be_captured: bool = True
    restore: Callable[[list[Tensor]], list[Tensor]] = lambda grads: grads

    def call(self, direction: str) -> Run:
        if direction == TRAINING:
            return self.step
        self.module.requires_grad_(False)
        return torch.no_grad()(self.predict)

    def step(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        predictions, loss = self.losses()
        return predictions, torch.autograd.grad(loss, self.parameters)


def preparation(case: ModelCase, device: str, programs: Programs) -> tuple[Row, subjects.Prepare]:
    """Return the columns that all rows of a case share, and what prepares an implementation."""
    frames = case.frames(device)
    exact: dict[str, Exact] = {}  # by architecture

    def prepare(name: str, layout: str, row: Row) -> timing.Subject:
        net, call = checked(case, name, layout, frames, exact, row, programs)
        row["flops"] = counting.flops(call)
        return subjects.subject(
            [call], row, forward=net.losses if case.direction == TRAINING else None,
            known=[frames, *net.parameters], on_gpu=frames.is_cuda, can_be_captured=net.can_be_captured,
        )  # fmt: skip

    return {**case.identity(), "sets": 1, "cold": True, "work": None}, prepare


def checked(
    case: ModelCase,
    name: str,
    layout: str,
    frames: Tensor,
    exact: dict[str, Exact],
    row: Row,
    programs: Programs = NO_PROGRAMS,
) -> tuple[Net, Run]:
    """Return an implementation and its call, after comparing its results with float64.

    `exact` collects the float64 results by architecture, `row` gets the difference.
    """
    model = case.model(name).to(frames.device, case.torch_dtype)
    model = model.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    if name == "official":
        net = _official(case, model, frames, programs)
    elif name == "openstl":
        net = _openstl(case, model, frames, programs)
    else:
        net = _ours(case, name, model, frames)
    call = net.call(case.direction)
    torch.manual_seed(SEED)
    made = subjects.first(call, row)
    architecture = name if name in PARTS else "MotionRNN"
    if architecture not in exact:
        exact[architecture] = _exact(case, name, model, frames)
    row["difference"] = _difference(case, net, made, exact[architecture])
    subjects.check(row, case.tolerance)
    return net, call


def _ours(case: ModelCase, name: str, model: MotionRNN, frames: Tensor) -> Net:
    given, predicted = case.setting.given, case.setting.predicted
    chosen = "reference" if name == "reference" else None

    def losses() -> tuple[Tensor, Tensor]:
        model.reset()
        predictions = _on(chosen, lambda: model(frames, given))
        return predictions, F.mse_loss(predictions, frames[:, 1:])

    def predict() -> Tensor:
        model.reset()
        return cast(Tensor, _on(chosen, lambda: model.predict(frames[:, :given], predicted)))

    return Net(model, losses, predict, [p for _, p in model.named_parameters()])


def _on(chosen: str | None, call: Run) -> Any:
    if chosen is None:
        return call()
    with backend(chosen):
        return call()


def _official(case: ModelCase, model: MotionRNN, frames: Tensor, programs: Programs) -> Net:
    if programs.official is None:
        raise Unavailable("no checkout of the official program was named")
    from .official import mask_of

    setting, device = case.setting, str(frames.device)
    network = programs.official.motion_rnn(setting, model.state_dict(), device)
    folded = _folded(frames, setting)
    mask = mask_of(setting, device)
    named = dict(network.named_parameters())
    return Net(
        network, lambda: network(folded, mask), lambda: network(folded, mask)[0][:, -setting.predicted :],
        [named[official_name(name)] for name, _ in model.named_parameters()], can_be_captured=False,
    )  # fmt: skip


def _openstl(case: ModelCase, model: MotionRNN, frames: Tensor, programs: Programs) -> Net:
    if programs.openstl is None:
        raise Unavailable("no checkout of OpenSTL was named")
    from .official import mask_of
    from .openstl import live_parameters, start_afresh

    setting, device = case.setting, str(frames.device)
    network = programs.openstl.network(model, setting, device)
    folded, mask = _folded(frames, setting), mask_of(setting, device)
    live = live_parameters(network, model.predictor)

    def predictions() -> Tensor:
        start_afresh(network)
        return cast(Tensor, network(folded, mask, return_loss=False)[0])

    def losses() -> tuple[Tensor, Tensor]:
        made = predictions()
        return made, F.mse_loss(made, folded[:, 1:])

    def restore(grads: list[Tensor]) -> list[Tensor]:
        by_name = to_ours(dict(zip(live, grads, strict=True)), model.predictor)
        return [by_name[name] for name, _ in model.named_parameters()]

    return Net(
        network, losses, lambda: predictions()[:, -setting.predicted :], list(live.values()),
        can_be_captured=False, restore=restore,
    )  # fmt: skip


def _folded(frames: Tensor, setting: ModelSetting) -> Tensor:
    """Return frames as the programs take them, (B, T, h, w, P*P*C)."""
    return fold_patches(frames, setting.patch).movedim(2, -1).contiguous()


def _exact(case: ModelCase, name: str, model: MotionRNN, frames: Tensor) -> Exact:
    """Return the reference's results in float64, from the initial states that the model draws."""
    setting = case.setting
    torch.manual_seed(SEED)
    state = _double(model.initial_state(setting.batch, setting.size, setting.size))
    exact = case.model(name).to(frames.device, torch.float64)
    exact.load_state_dict(model.state_dict())
    wide = frames.double()
    with backend("reference"):
        if case.direction == INFERENCE:
            return exact.predict(wide[:, : setting.given], setting.predicted, state), []
        predictions = exact(wide, setting.given, state=state)
        loss = F.mse_loss(predictions, wide[:, 1:])
        return predictions.detach(), list(torch.autograd.grad(loss, list(exact.parameters())))


def _double(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.double()
    if isinstance(state, tuple):
        parts = [_double(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def _difference(case: ModelCase, net: Net, made: Any, exact: Exact) -> float:
    predictions, grads = (made, []) if case.direction == INFERENCE else (made[0], net.restore(list(made[1])))
    if predictions.shape != exact[0].shape:  # the program's, folded, with channels last
        predictions = unfold_patches(predictions.movedim(-1, 2), case.setting.patch)
    return largest_difference([predictions, *grads], [exact[0], *exact[1]])
