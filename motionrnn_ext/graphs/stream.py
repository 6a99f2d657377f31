"""`graphed_step`: the steps of a stream of frames from one CUDA graph."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.torch_private import tree_leaves, tree_map_only
from ..caller import stacklevel_of_user
from ..models import MotionRNN
from ..models.motion_rnn import MotionRNNState
from . import conditions
from .capture import CapturedStep

# A state that still grows after so many steps, such as that of an attention to all past steps, fits no graph.
_MOST_STEPS = 64


def graphed_step(model: MotionRNN, frame: Tensor) -> GraphedStep:
    """Return a stream that predicts the next frame after each frame, without gradients, played from a CUDA graph.

        stream = motionrnn_ext.graphed_step(model, frame)
        for frame in frames:
            following = stream(frame)       # as model.step(frame, state)[0]; the stream keeps the state
        stream.reset()                      # the next frame begins another sequence

    The graph is recorded at once. It is recorded anew, in the middle of a sequence too, when settings have changed
    (autocast, training mode, backend, deterministic algorithms), or weights were replaced. In-place changes of weights
    need nothing.

    Args:
        model: the model, with its weights on a GPU.
        frame: an example of the frames, (B, C, H, W).

    Raises:
        TypeError: the model is no `MotionRNN`.
        ValueError: a graph cannot hold the model, its state grows with every step, or frame does not fit the model.
    """
    conditions.check_model("graphed_step", model)
    stream = GraphedStep(model, frame)
    devices = [frame.device.index] if isinstance(frame, Tensor) and frame.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        for _ in range(_MOST_STEPS):
            stream(frame)
            if stream.is_recorded:
                break
        else:
            raise ValueError(
                f"graphed_step: the state of {model.predictor!r} still grows after {_MOST_STEPS} steps; it should have "
                "one size in the end, such as with cell_options={'history': 20}"
            )
    stream.reset()
    return stream


class GraphedStep:
    """The stream that `graphed_step` returns. Steps whose state has not its final size yet run the model itself.

    Attributes:
        model: the model.
    """

    def __init__(self, model: MotionRNN, frame: Tensor) -> None:
        self.model, self._like = model, _shape_of(frame)
        self._graph: CapturedStep | None = None
        self._key: Any = None
        self._shape: Any = None  # the structure of the states that the graph takes
        self._state: MotionRNNState | None = None  # None at the start, and while it is in the graph
        self._runs = False  # whether the state is in the graph

    @property
    def is_recorded(self) -> bool:
        """Whether there is a graph."""
        return self._graph is not None

    def reset(self) -> None:
        """Begin another sequence with the next frame."""
        self._state, self._runs = None, False

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Tensor:
        """Return the prediction of the frame after `frame`, (B, C, H, W).

        Raises:
            ValueError: frame has another shape, dtype or device than the example.
        """
        found = _shape_of(frame)
        if found != self._like:
            raise ValueError(f"graphed_step: frame is {found}; it should be {self._like}, as the example was")
        self._drop_stale_graph()
        if not conditions.can_replay(frame):
            prediction, self._state = self.model.step(frame, self._taken_out())
            return prediction
        if not self._runs:
            if self._state is None:
                self._state = self._started(frame)
            self._enter(self._state)
        if self._runs and self._graph is not None:
            return self._graph(frame)
        before = self._state
        prediction, after = self.model.step(frame, before)
        self._state = after
        if self._graph is None and conditions.structure(after) == conditions.structure(before):
            self._record(frame, after)
        return prediction

    def _started(self, frame: Tensor) -> MotionRNNState | None:
        """Return the initial state, or None if the frame is none that the model takes, so that `step` says why."""
        if not isinstance(frame, Tensor) or frame.dim() != 4:
            return None
        return self.model.initial_state(len(frame), *frame.shape[-2:])

    def _record(self, frame: Tensor, state: MotionRNNState) -> None:
        device = conditions.check_model("graphed_step", self.model)
        self._graph = CapturedStep(Step(self.model, state), frame, _tensors(state), device)
        self._shape = conditions.structure(state)
        self._watch = conditions.Watch(self.model)
        self._key = self._settings()
        self._template = state

    def _enter(self, state: MotionRNNState | None) -> None:
        """Put the state into the graph, if there is one for such states."""
        if self._graph is not None and conditions.structure(state) == self._shape:
            self._graph.load(_tensors(state))
            self._state, self._runs = None, True

    def _taken_out(self) -> MotionRNNState | None:
        """Return the state of the sequence, in memory of its own."""
        if self._runs and self._graph is not None:
            kept = iter([t.clone() for t in self._graph.state])
            self._state = tree_map_only(Tensor, lambda _: next(kept), self._template)
            self._runs = False
        return self._state

    def _settings(self) -> Any:
        return conditions.settings(), self._watch.modes()

    def _drop_stale_graph(self) -> None:
        if self._graph is None:
            return
        is_stale = self._watch.is_stale()
        if is_stale:
            warnings.warn(
                "graphed_step: weights, numbers or hooks of the model were replaced since its graph was recorded; it "
                "is recorded anew, which takes time at every such change",
                stacklevel=stacklevel_of_user(),
            )
        if is_stale or self._key != self._settings():
            self._taken_out()
            self._graph = None


class Step(nn.Module):
    """A step whose arguments and results are all tensors: those of a state `like` this."""

    def __init__(self, model: MotionRNN, like: MotionRNNState) -> None:
        super().__init__()
        self.model, self.like = model, like

    def forward(self, frame: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        state = tree_map_only(Tensor, lambda _: next(given), self.like)
        prediction, after = self.model.step(frame, state)
        return prediction, *_tensors(after)


def _tensors(state: Any) -> list[Tensor]:
    return [t for t in tree_leaves(state) if isinstance(t, Tensor)]


def _shape_of(frame: object) -> str:
    """Return shape, dtype and device of a tensor in words, or the type of anything else."""
    if not isinstance(frame, Tensor):
        return f"a {type(frame).__name__}"
    return f"{tuple(frame.shape)} of {frame.dtype} on {frame.device}"
