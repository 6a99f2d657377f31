"""`graphed`: the rollout of a MotionRNN, forward and backward, in CUDA graphs."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.torch_private import tree_leaves, tree_map_only
from ..caller import stacklevel_of_user
from ..layers.arguments import check_whole, flag
from ..models import MotionRNN
from ..models.arguments import check_count
from ..models.motion_rnn import MotionRNNState
from ..models.patches import expanded_mask
from . import conditions
from .capture import Captured


def graphed(
    model: MotionRNN,
    frames: Tensor,
    n_input: int,
    *,
    sampling: bool = False,
    reverse_sampling: bool = False,
    checkpoint: bool = False,
    max_graphs: int = 2,
) -> GraphedRollout:
    """Return a function with the values and gradients of `model(frames, n_input, ...)`, played from CUDA graphs.

    The host then launches a rollout as one graph, and its backward as another, in place of thousands of kernels.

        fast = motionrnn_ext.graphed(model, frames, 10, sampling=True)
        F.mse_loss(fast(frames, sampling_mask), frames[:, 1:]).backward()

    The graphs for `frames` are recorded at once, under the settings in force: autocast, gradients, training mode,
    backend, deterministic algorithms. A call with other shapes, dtypes or settings records another, as long as there
    are fewer than `max_graphs`; then such calls run the model, and a warning says so once. Weights may be changed in
    place, by an optimiser or `load_state_dict`. After weights were replaced or moved, the graphs are recorded anew,
    with a warning.

    Args:
        model: the model, with its weights on a GPU.
        frames: an example of the frames, (B, T, C, H, W).
        n_input: the number of given frames, as in `MotionRNN.forward`.
        sampling: whether calls may have a sampling mask. Without one the mask is 0 throughout.
        reverse_sampling: whether the mask covers the given frames too, as in `MotionRNN.forward`.
        checkpoint: False; steps cannot be computed again in a graph.
        max_graphs: the largest number of graphs, each with the memory of a whole rollout.

    Raises:
        TypeError: the model is no `MotionRNN`, or an argument has another type.
        ValueError: a graph cannot hold the model, or an argument does not fit the model.
    """
    if flag("checkpoint", checkpoint):
        raise ValueError(
            "graphed: checkpoint is True; it should be False, because a graph keeps the memory of the whole rollout; "
            "to save memory call the model itself"
        )
    check_count("n_input", n_input)
    check_whole("max_graphs", max_graphs, at_least=1)
    conditions.check_model("graphed", model)
    sampling, reverse = flag("sampling", sampling), flag("reverse_sampling", reverse_sampling)
    made = GraphedRollout(model, n_input, sampling or reverse, reverse, max_graphs)
    made.record(frames)
    return made


class GraphedRollout:
    """The function that `graphed` returns.

    Attributes:
        model: the model.
    """

    def __init__(
        self, model: MotionRNN, n_input: int, sampling: bool, reverse_sampling: bool, max_graphs: int
    ) -> None:
        self.model, self.n_input, self.max_graphs = model, n_input, max_graphs
        self.sampling, self.reverse_sampling = sampling, reverse_sampling
        self._graphs: dict[Any, Captured] = {}
        self._watch = conditions.Watch(model)
        self._has_warned = False

    def __call__(
        self,
        frames: Tensor,
        sampling_mask: Tensor | None = None,
        state: MotionRNNState | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the predictions of frames 1 to T-1, (B, T-1, C, H, W), as `MotionRNN.forward` does.

        The arguments are those of `MotionRNN.forward`. With gradients, backward should come before the next call.

        Raises:
            ValueError: there is a mask and `sampling` is False, or an argument does not fit the model.
        """
        if sampling_mask is not None and not self.sampling:
            raise ValueError(
                "graphed: sampling_mask is given; it should be None, unless the graph was made with sampling=True"
            )
        given = [t for t in (sampling_mask, *tree_leaves(state)) if isinstance(t, Tensor)]
        asks_for_more = sampling_mask is not None and sampling_mask.requires_grad
        if asks_for_more or not conditions.can_replay(frames, *given) or frames.dim() != 5:
            return self._eager(frames, sampling_mask, state, generator)
        state = self._drawn(frames, state, generator)
        graph = self._graph(frames, state)
        if graph is None:
            return self._eager(frames, sampling_mask, state, generator)
        return graph(*self._inputs(frames, sampling_mask, state))

    def record(self, frames: Tensor) -> None:
        """Record the graphs for such frames under the settings in force, or find that the model does not take them."""
        state = None
        if conditions.can_replay(frames) and frames.dim() == 5:
            devices = [frames.device.index] if frames.device.type == "cuda" else []
            with torch.random.fork_rng(devices):
                state = self._drawn(frames, None, None)
            self._graph(frames, state)
        else:
            self._eager(frames, None, None, None)

    def _graph(self, frames: Tensor, state: MotionRNNState | None) -> Captured | None:
        """Return the graph for such a call, recorded if need be; None if there are as many as there may be."""
        if self._watch.is_stale():
            self._graphs.clear()
            self._watch, self._has_warned = conditions.Watch(self.model), False
            warnings.warn(
                "graphed: weights, numbers or hooks of the model were replaced since its graphs were recorded; they "
                "are recorded anew, which takes time at every such change",
                stacklevel=stacklevel_of_user(),
            )
        key = (conditions.structure((frames, state)), conditions.settings(), self._watch.modes())
        if key not in self._graphs:
            if len(self._graphs) >= self.max_graphs:
                self._warn_of_eager_calls()
                return None
            device = conditions.check_model("graphed", self.model)
            rollout = Rollout(self.model, self.n_input, self.reverse_sampling, self.sampling, state)
            inputs = self._inputs(frames, None, state)
            self._graphs[key] = Captured(rollout, inputs, device)
        return self._graphs[key]

    def _warn_of_eager_calls(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"graphed: there are max_graphs={self.max_graphs} graphs, for other shapes, dtypes or settings; calls "
                "such as this one run the model itself, which is slower",
                stacklevel=stacklevel_of_user(),
            )

    def _inputs(
        self, frames: Tensor, mask: Tensor | None, state: MotionRNNState | None
    ) -> tuple[Tensor, ...]:
        """Return the tensors that are copied into the graph: frames, the mask in full size, the state."""
        masks = []
        if self.sampling:
            sampled = frames.detach()[:, 1 if self.reverse_sampling else self.n_input : frames.shape[1] - 1]
            masks = [torch.zeros_like(sampled) if mask is None else expanded_mask(mask, sampled)]
        return (frames, *masks, *(t for t in tree_leaves(state) if isinstance(t, Tensor)))

    def _drawn(
        self, frames: Tensor, state: MotionRNNState | None, generator: torch.Generator | None
    ) -> MotionRNNState | None:
        """Return the state, drawn here if it is random: in a graph it would have no generator of the caller's."""
        if state is not None or self.model.options.init_state == "zeros":
            return state
        height, width = frames.shape[-2:]
        return self.model.initial_state(len(frames), height, width, generator)

    def _eager(
        self,
        frames: Tensor,
        mask: Tensor | None,
        state: MotionRNNState | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        out = self.model(frames, self.n_input, mask, state, self.reverse_sampling, generator=generator)
        assert isinstance(out, Tensor)
        return out


class Rollout(nn.Module):
    """A rollout whose arguments are all tensors: frames, the mask with `sampling`, and those of a state `like` this."""

    def __init__(
        self, model: MotionRNN, n_input: int, reverse_sampling: bool, sampling: bool, like: Any
    ) -> None:
        super().__init__()
        self.model, self.n_input, self.like = model, n_input, like
        self.sampling, self.reverse_sampling = sampling, reverse_sampling

    def forward(self, frames: Tensor, *rest: Tensor) -> Any:
        mask, tensors = (rest[0], iter(rest[1:])) if self.sampling else (None, iter(rest))
        state = tree_map_only(Tensor, lambda _: next(tensors), self.like)
        return self.model(frames, self.n_input, mask, state, self.reverse_sampling)
