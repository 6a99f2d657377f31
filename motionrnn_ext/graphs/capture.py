"""Record the calls of a module in CUDA graphs, and play them.

A graph reads and writes the same memory every time. Arguments are therefore copied into it, and results out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..warmup import warmup
from .conditions import Watch


class Captured:
    """A call `module(*inputs) -> tensor` in a graph, and its backward in another, if something needs gradients.

    `torch.cuda.make_graphed_callables` does the same, but its results and gradients share the graph's memory: the next
    call would change those that a program keeps, and gradients that are summed over several calls would be wrong.

    Args:
        module: the module to call; its parameters may need gradients.
        inputs: tensors like those of the calls to come.
        device: the GPU.
    """

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor], device: torch.device) -> None:
        self.inputs = static_copies(inputs)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.calls = 0
        self.backward_graph: torch.cuda.CUDAGraph | None = None
        self.graph, (out,), stream = recorded(module, self.inputs, device)
        self.out = out.detach()
        if not out.requires_grad:
            return
        wanted = [t for t in (*self.inputs, *self.parameters) if t.requires_grad]
        self.out_gradient = torch.empty_like(out)
        self.backward_graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), recording(self.backward_graph, stream, self.graph.pool()):
            found = torch.autograd.grad(out, wanted, self.out_gradient, allow_unused=True)
        gradients = iter(found)
        self.gradients = [
            next(gradients) if t.requires_grad else None for t in (*self.inputs, *self.parameters)
        ]

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.backward_graph is None:
            return self.replay(inputs)
        out: Tensor = _Replayed.apply(self, len(inputs), *inputs, *self.parameters)
        return out

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            for static, given in zip(self.inputs, inputs):
                static.copy_(given)
            self.graph.replay()
            self.calls += 1
            return self.out.clone()


class _Replayed(torch.autograd.Function):
    """The node of a rollout whose forward and backward are played from graphs."""

    @staticmethod
    def forward(ctx: Any, captured: Captured, count: int, *tensors: Tensor) -> Tensor:
        # The parameters are saved so that PyTorch refuses a backward after they have changed, and a second one.
        ctx.save_for_backward(*tensors[count:])
        out = captured.replay(tensors[:count])
        ctx.captured, ctx.call = captured, captured.calls
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        captured: Captured = ctx.captured
        if torch.is_grad_enabled():
            raise RuntimeError(
                "graphed: backward was called with create_graph=True, and a graph has no second derivatives; call the "
                "model itself"
            )
        _ = ctx.saved_tensors
        if ctx.call != captured.calls:
            raise RuntimeError(
                "graphed: the graph's memory has been used again, by a later call or an earlier backward; there should "
                "be one backward after each call, before the next: join the batches of both calls, or add up gradients"
            )
        # Backward writes into the memory that it no longer needs.
        captured.calls += 1
        assert captured.backward_graph is not None
        captured.out_gradient.copy_(gradients[0])
        captured.backward_graph.replay()
        # Copies: PyTorch would keep the graph's own tensors as the gradients of the parameters.
        return None, None, *(None if g is None else g.clone() for g in captured.gradients)


class CapturedStep:
    """A step `module(frame, *state) -> (prediction, *state)` in a graph that writes the state over the one it read."""

    def __init__(
        self, module: nn.Module, frame: Tensor, state: Sequence[Tensor], device: torch.device
    ) -> None:
        self.frame, *self.state = static_copies([frame, *state])
        self.graph, outputs, _ = recorded(InPlace(module), [self.frame, *self.state], device)
        self.prediction = outputs[0]

    def load(self, state: Sequence[Tensor]) -> None:
        for static, given in zip(self.state, state):
            static.copy_(given)

    def __call__(self, frame: Tensor) -> Tensor:
        self.frame.copy_(frame)
        self.graph.replay()
        return self.prediction.clone()


class InPlace(nn.Module):
    """A step that writes the new state into the tensors of the old one, and returns the prediction."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, frame: Tensor, *state: Tensor) -> Tensor:
        prediction, *after = self.step(frame, *state)
        # A part of the new state may be one of the old state or the frame, which the copies would overwrite.
        read = {t.untyped_storage().data_ptr() for t in (frame, *state)}
        after = [t.clone() if t.untyped_storage().data_ptr() in read else t for t in after]
        for static, new in zip(state, after):
            static.copy_(new)
        out: Tensor = prediction
        return out


def static_copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return a copy of each tensor in memory of its own: those of an initial state may share theirs."""
    return [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]


def recording(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any = None) -> torch.cuda.graph:
    """Return the context in which a graph is recorded. Other threads, which load clips, may use the GPU meanwhile."""
    return torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local")


def recorded(
    module: nn.Module, inputs: Sequence[Tensor], device: torch.device
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], torch.cuda.Stream]:
    """Warm a module up and record its call. Return the graph, its results and the stream of the recording.

    Raises:
        ValueError: the call changes the module.
    """
    watch = Watch(module)
    with torch.cuda.device(device):
        warmup(module, *inputs)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        try:
            with recording(graph, stream):
                out = module(*inputs)
        finally:
            # Casts of weights that autocast keeps are those of the graph. `warmup` has ended those from before.
            torch.clear_autocast_cache()
    if watch.is_stale() or len(Watch(module).objects) != len(watch.objects):
        raise ValueError(
            "graphed: a call of the model changes its numbers or tensors; what is needed of earlier steps should be in "
            "the state, because a graph would not renew it"
        )
    return graph, out if isinstance(out, tuple) else (out,), stream
