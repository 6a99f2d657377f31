"""motionrnn_ext.graphed and graphed_step. Without a GPU: graphs of CPU tensors that are recorded and replayed op by op
(support/replaying.py) give what the model gives, follow their inputs and weights, and never give anything stale."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from replaying import Graph, replaying
from repository import ROOT
from torch import Tensor, nn

import motionrnn_ext
from motionrnn_ext import MotionRNN, graphed, graphed_step
from motionrnn_ext.layers.cells import CELLS

N_INPUT, T = 2, 5


@pytest.fixture
def graphs() -> Iterator[list[Graph]]:
    with replaying() as made:
        yield made


def small(predictor: str = "predrnn", **options: Any) -> MotionRNN:
    torch.manual_seed(0)
    return MotionRNN(predictor, 1, (8, 8), 2, filter_size=3, image_size=(8, 12), **options)


def clip(batch: int = 2, seed: int = 1, **options: Any) -> Tensor:
    return torch.rand(batch, T, 1, 8, 12, generator=torch.Generator().manual_seed(seed), **options)


def results(model: MotionRNN, call: Callable[..., Tensor], *arguments: Any, **named: Any) -> list[Tensor]:
    """The predictions, and the gradients of parameters and first argument."""
    model.zero_grad()
    frames = arguments[0].detach().clone().requires_grad_(arguments[0].requires_grad)
    out = call(frames, *arguments[1:], **named)
    F.mse_loss(out.float(), frames[:, 1:].detach()).backward()
    gradients = [p.grad for p in model.parameters()] + [frames.grad]
    return [t.detach().clone() for t in (out, *gradients) if t is not None]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0)


# ---- Rollouts


@pytest.mark.parametrize("predictor", CELLS)
def test_a_rollout_gives_values_and_gradients_of_the_model(predictor: str, graphs: list[Graph]):
    model = small(predictor)
    fast = graphed(model, clip(), N_INPUT)
    for seed in (1, 2):
        frames = clip(seed=seed)
        assert_same(results(model, fast, frames), results(model, lambda f: model(f, N_INPUT), frames))
    forward, backward = graphs
    assert (forward.replays, backward.replays) == (2, 2)


@pytest.mark.parametrize("reverse", [False, True])
def test_scheduled_sampling_follows_its_mask(reverse: bool, graphs: list[Graph]):
    model, steps = small(), T - 2 if reverse else T - 1 - N_INPUT
    fast = graphed(model, clip(), N_INPUT, sampling=not reverse, reverse_sampling=reverse)
    shapes = [(2, steps, 1, 1, 1), (2, steps, 1, 8, 12), (1, 1, 1, 1, 1)]
    masks = [torch.rand(shape).round() for shape in shapes] + [torch.rand(shapes[0]) > 0.5]
    for mask in masks:
        expected = results(model, lambda f, m: model(f, N_INPUT, m, None, reverse), clip(), mask)
        assert_same(results(model, fast, clip(), mask), expected)
    zeros = torch.zeros(shapes[0])
    assert_same([fast(clip())], [model(clip(), N_INPUT, zeros, None, reverse)])
    assert len(graphs) == 2
    with pytest.raises(ValueError, match=r"sampling_mask has shape \(3, 1\); it should broadcast to \(2, "):
        fast(clip(), torch.zeros(3, 1))


def test_random_initial_states_are_those_of_the_generator(graphs: list[Graph]):
    model = small(init_state="xavier")
    before = torch.get_rng_state()
    fast = graphed(model, clip(), N_INPUT)
    assert torch.get_rng_state().equal(before)
    outputs = []
    for seed in (1, 2):
        outputs.append(fast(clip(), generator=torch.Generator().manual_seed(seed)))
        expected = model(clip(), N_INPUT, generator=torch.Generator().manual_seed(seed))
        assert_same([outputs[-1]], [expected])
    assert not outputs[0].equal(outputs[1]) and len(graphs) == 2


def test_a_state_and_frames_that_ask_for_gradients(graphs: list[Graph]):
    model = small()
    _, state = model.step(clip(seed=5)[:, 0])
    state = state.detach()._replace(memory=state.memory.detach().requires_grad_())
    frames = clip(requires_grad=True)
    fast = graphed(model, frames, N_INPUT)
    found = results(model, fast, frames, state=state)
    memory, state.memory.grad = state.memory.grad, None
    expected = results(model, lambda f, state: model(f, N_INPUT, None, state), frames, state=state)
    assert memory is not None and len(graphs) == 4
    assert_same([*found, memory], [*expected, state.memory.grad])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_has_a_graph_of_its_own_and_casts_anew(dtype: torch.dtype, graphs: list[Graph]):
    """A cast that was kept from before would hold old weights."""
    model, frames = small(), clip()
    with torch.autocast("cpu", dtype):
        model(frames, N_INPUT)
        fast = graphed(model, frames, N_INPUT)
        found = fast(frames)
        # The model itself in the same context, whose casts are no longer those of the graph.
        assert_same(results(model, fast, frames), results(model, lambda f: model(f, N_INPUT), frames))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    with torch.autocast("cpu", dtype):
        again = results(model, fast, frames)
        expected = results(model, lambda f: model(f, N_INPUT), frames)
    assert_same(again, expected)
    assert not found.equal(again[0]) and len(graphs) == 2
    plain = results(model, fast, frames)
    assert plain[0].dtype == torch.float32 and len(graphs) == 4


def test_a_learned_alpha_is_followed(graphs: list[Graph]):
    model = small("convlstm", alpha=nn.Parameter(torch.tensor(0.5)))
    fast = graphed(model, clip(), N_INPUT)
    before = fast(clip())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("alpha"):
                p.fill_(0.9)
    found = results(model, fast, clip())
    assert_same(found, results(model, lambda f: model(f, N_INPUT), clip()))
    assert not found[0].equal(before) and len(graphs) == 2


def test_results_and_gradients_are_kept_and_added_up(graphs: list[Graph]):
    """They do not share the graph's memory."""
    model = small()
    fast, other = graphed(model, clip(), N_INPUT), copy.deepcopy(model)
    outputs = []
    for seed in (1, 2):
        outputs.append(fast(clip(seed=seed)))
        outputs[-1].square().sum().backward()
        other(clip(seed=seed), N_INPUT).square().sum().backward()
    assert_same(outputs, [model(clip(seed=seed), N_INPUT) for seed in (1, 2)])
    assert_same([p.grad for p in model.parameters()], [p.grad for p in other.parameters()])


# ---- When a graph is recorded anew, and when the model itself runs


def test_settings_have_graphs_of_their_own_up_to_max_graphs(graphs: list[Graph]):
    model = small()
    fast = graphed(model, clip(), N_INPUT, max_graphs=3)
    with torch.no_grad():
        assert_same([fast(clip())], [model(clip(), N_INPUT)])
    model.eval()
    fast(clip())
    assert len(graphs) == 2 + 1 + 2
    with pytest.warns(
        UserWarning, match="there are max_graphs=3 graphs, for other shapes, dtypes or settings"
    ):
        out = fast(clip(batch=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same([fast(clip(batch=3))], [out])
        fast(clip())
        model.train()
        fast(clip())
    assert len(graphs) == 5 and graphs[0].replays == 1
    assert_same([out], [model(clip(batch=3), N_INPUT)])


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize(
    "setting",
    [
        torch.no_grad,
        torch.inference_mode,
        deterministic,
        tf32,
        lambda: motionrnn_ext.backend("reference"),
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.autocast("cpu", torch.float16),
    ],
    ids=["no_grad", "inference", "deterministic", "tf32", "backend", "bfloat16", "float16"],
)
def test_a_setting_is_a_part_of_the_key(setting: Callable[[], Any], graphs: list[Graph]):
    model = small("convlstm")
    fast = graphed(model, clip(), N_INPUT, max_graphs=10)
    with setting():
        count = len(graphs)
        out = fast(clip())
        assert len(graphs) > count
        assert_same([out], [model(clip(), N_INPUT)])
        count = len(graphs)
        fast(clip())
    fast(clip())
    assert len(graphs) == count


def test_frozen_parameters_are_a_part_of_the_key(graphs: list[Graph]):
    model = small("convlstm")
    fast = graphed(model, clip(), N_INPUT)
    model.cells.requires_grad_(False)
    assert_same(results(model, fast, clip()), results(model, lambda f: model(f, N_INPUT), clip()))
    assert model.cells[0].get_parameter(next(iter(dict(model.cells[0].named_parameters())))).grad is None
    assert len(graphs) == 4


def test_weights_that_change_in_place_need_nothing(graphs: list[Graph]):
    model, other = small(), small()
    fast = graphed(model, clip(), N_INPUT)
    optimizer, reference = (torch.optim.SGD(m.parameters(), 0.1) for m in (model, other))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            results(model, fast, clip())
            results(other, lambda f: other(f, N_INPUT), clip())
            optimizer.step(), reference.step()
        assert_same([fast(clip())], [other(clip(), N_INPUT)])
        model.load_state_dict(small("predrnn", variant="paper").state_dict())
        assert_same([fast(clip())], [model(clip(), N_INPUT)])
    assert len(graphs) == 2


def replaced_parameter(model: MotionRNN) -> None:
    model.conv_last.weight = nn.Parameter(torch.zeros_like(model.conv_last.weight))


def assigned_state_dict(model: MotionRNN) -> None:
    model.load_state_dict({n: 2 * t for n, t in model.state_dict().items()}, assign=True)


def replaced_part(model: MotionRNN) -> None:
    model.interfaces[0] = copy.deepcopy(model.interfaces[0])
    nn.init.ones_(model.interfaces[0].gate.weight)


def other_bound(model: MotionRNN) -> None:
    model.interfaces[0].cell.max_offset = 0.1


CHANGES = {
    "parameter": replaced_parameter,
    "assigned state dict": assigned_state_dict,
    "data": lambda model: setattr(model.conv_last.weight, "data", torch.ones_like(model.conv_last.weight)),
    "part": replaced_part,
    "channels_last": lambda model: model.to(memory_format=torch.channels_last),
    "number": other_bound,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_stale_graph_is_recorded_anew(change: Callable[[MotionRNN], Any], graphs: list[Graph]):
    model = small(max_offset=3.0)
    with torch.no_grad():
        # The motion counts, so that a bound on it changes predictions.
        for gru in model.interfaces:
            for p in gru.parameters():
                p.mul_(4)
    fast, stream = graphed(model, clip(), N_INPUT), graphed_step(model, clip()[:, 0])
    before = fast(clip()), stream(clip()[:, 0])
    change(model)
    with pytest.warns(UserWarning, match="graphed: weights, numbers or hooks of the model were replaced"):
        found = results(model, fast, clip())
    assert_same(found, results(model, lambda f: model(f, N_INPUT), clip()))
    stream.reset()
    with pytest.warns(
        UserWarning, match="graphed_step: weights, numbers or hooks of the model were replaced"
    ):
        step = stream(clip()[:, 0])
    assert_same([step], [model.step(clip()[:, 0])[0].detach()])
    if change is not CHANGES["channels_last"]:
        assert not before[0].equal(found[0])


def test_another_dtype_of_the_model(graphs: list[Graph]):
    model = small()
    fast = graphed(model, clip(), N_INPUT)
    model.double()
    with pytest.warns(UserWarning, match="recorded anew"):
        found = fast(clip().double())
    assert_same([found], [model(clip().double(), N_INPUT)])


def test_traced_transformed_and_captured_calls_run_the_model(
    graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
):
    model = small("convlstm")
    fast = graphed(model, clip(), N_INPUT)
    tangent = torch.func.jvp(fast, (clip(),), (torch.ones_like(clip()),))[1]
    expected = torch.func.jvp(lambda f: model(f, N_INPUT), (clip(),), (torch.ones_like(clip()),))[1]
    assert_same([tangent], [expected])
    both = torch.stack([clip(), clip(seed=2)])
    torch.testing.assert_close(torch.vmap(fast)(both), torch.stack([model(f, N_INPUT) for f in both]))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    fast(clip())
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    fast(clip())
    assert len(graphs) == 2 and not any(graph.replays for graph in graphs)


# ---- What a graph cannot do is refused


def test_a_backward_after_a_later_call_is_refused(graphs: list[Graph]):
    model = small("convlstm")
    fast = graphed(model, clip(), N_INPUT)
    first, second = fast(clip()), fast(clip(seed=2))
    with pytest.raises(RuntimeError, match="the graph's memory has been used again, by a later call"):
        first.sum().backward()
    second.sum().backward()
    with torch.no_grad():
        third = fast(clip())
    assert not third.requires_grad


def test_a_second_backward_is_refused(graphs: list[Graph]):
    model = small("convlstm")
    out = graphed(model, clip(), N_INPUT)(clip()).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="or an earlier backward; there should be one backward after each"):
        out.backward()


def test_a_backward_after_the_weights_have_changed_is_refused(graphs: list[Graph]):
    model = small("convlstm")
    out = graphed(model, clip(), N_INPUT)(clip()).sum()
    with torch.no_grad():
        model.conv_last.weight.mul_(2)
    with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
        out.backward()


def test_second_derivatives_are_refused(graphs: list[Graph]):
    model = small("convlstm")
    out = graphed(model, clip(), N_INPUT)(clip()).sum()
    with pytest.raises(RuntimeError, match="create_graph=True, and a graph has no second derivatives"):
        torch.autograd.grad(out, list(model.parameters()), create_graph=True)


@pytest.mark.parametrize(
    "make", [lambda m: graphed(m, clip(), N_INPUT), lambda m: graphed_step(m, clip()[:, 0])]
)
def test_models_that_a_graph_cannot_hold_are_refused_by_name(make: Callable[[Any], Any], graphs: list[Graph]):
    model = small()
    handle = model.cells[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"graphed.*: cells.1 has hooks; it should have none"):
        make(model)
    handle.remove()
    handle = model.conv_last.weight.register_hook(lambda g: 2 * g)
    with pytest.raises(ValueError, match=r"graphed.*: conv_last.weight has hooks"):
        make(model)
    handle.remove()
    with pytest.raises(
        ValueError, match="the cells of 'mim' with compat='openstl' keep a state from call to"
    ):
        make(small("mim", compat="openstl"))
    with pytest.raises(TypeError, match="model is a DataParallel; it should be a MotionRNN"):
        make(nn.DataParallel(model))
    assert graphs == []


def test_hooks_that_come_later_are_refused(graphs: list[Graph]):
    model = small()
    fast = graphed(model, clip(), N_INPUT)
    model.cells[0].register_forward_pre_hook(lambda *_: None)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="cells.0 has hooks"):
        fast(clip())


def test_a_model_that_keeps_something_is_refused(graphs: list[Graph]):
    model = small("convlstm")
    forward = type(model.cells[0]).forward

    class Keeps(type(model.cells[0])):  # type: ignore[misc]
        def forward(self, x: Tensor, *rest: Any) -> Any:
            self._last = x.detach()
            return forward(self, x, *rest)

    model.cells[0].__class__ = Keeps
    with pytest.raises(ValueError, match="a call of the model changes its numbers or tensors"):
        graphed(model, clip(), N_INPUT)


def test_arguments_are_checked_by_name(graphs: list[Graph]):
    model = small()
    with pytest.raises(ValueError, match="graphed: checkpoint is True; it should be False"):
        graphed(model, clip(), N_INPUT, checkpoint=True)
    with pytest.raises(ValueError, match="max_graphs is 0; it should be a whole number of at least 1"):
        graphed(model, clip(), N_INPUT, max_graphs=0)
    with pytest.raises(ValueError, match="n_input is 9 and T 5"):
        graphed(model, clip(), 9)
    with pytest.raises(ValueError, match="frames has shape"):
        graphed(model, clip()[0], N_INPUT)
    with pytest.raises(TypeError, match="frames is a list; it should be a torch.Tensor"):
        graphed(model, [1.0], N_INPUT)  # type: ignore[arg-type]
    fast = graphed(model, clip(), N_INPUT)
    with pytest.raises(ValueError, match="sampling_mask is given; it should be None, unless"):
        fast(clip(), torch.ones(1, 1, 1, 1, 1))
    with pytest.raises(ValueError, match="frames has shape"):
        fast(clip().expand(-1, -1, 3, -1, -1))
    with pytest.raises(TypeError, match="it should be a MotionRNNState"):
        fast(clip(), state=(torch.ones(1),))  # type: ignore[arg-type]


def test_without_a_gpu_there_is_one_clear_error():
    for make in (lambda: graphed(small(), clip(), N_INPUT), lambda: graphed_step(small(), clip()[:, 0])):
        with pytest.raises(ValueError, match=r"graphed.*: the weights are on cpu; they should be on one GPU"):
            make()


def test_the_program_of_the_page(graphs: list[Graph]):
    """On the CPU, and smaller."""
    page = (ROOT / "docs" / "pytorch.md").read_text().partition("## CUDA graphs")[2]
    program = page.partition("```python notest\n")[2].partition("```")[0]
    for here, there in ((".cuda()", ""), ('"cuda"', '"cpu"'), ("(64,) * 4", "(8, 8)")):
        assert here in program
        program = program.replace(here, there)
    clips = torch.rand(3, 1, 12, 1, 16, 16)
    names = {
        "torch": torch, "F": F, "motionrnn_ext": motionrnn_ext, "MotionRNN": MotionRNN, "frames": clips[0],
        "frame": clips[0, :, 0], "batches": [(clip, torch.ones(1, 1, 1, 1, 1)) for clip in clips],
    }  # fmt: skip
    exec(program, names)
    assert names["following"].shape == (1, 1, 16, 16) and names["loss"].isfinite()
    assert [graph.replays for graph in graphs] == [3, 3, 1]


# ---- Streams


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "predictor, eager",
    [("convlstm", 0), ("predrnn", 0), ("mim", 1), ("e3d_lstm", 3), ("conv_tt_lstm", 0)],
)
def test_a_stream_gives_the_steps_of_the_model(
    predictor: str, eager: int, autocast: bool, graphs: list[Graph]
):
    """`eager` steps run the model: those whose state has not its final structure yet. The second of two sequences
    begins anew."""
    model = small(predictor, **({"cell_options": {"history": 3}} if predictor == "e3d_lstm" else {}))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        stream = graphed_step(model, clip()[:, 0])
        assert len(graphs) == 1
        for seed in (1, 2):
            frames, state, kept = clip(seed=seed), None, []
            for t in range(T):
                kept.append(stream(frames[:, t]))
                with torch.no_grad():
                    expected, state = model.step(frames[:, t], state)
                assert_same([kept[-1]], [expected])
            stream.reset()
            assert not kept[0].equal(kept[1]) and not kept[0].requires_grad
    # Under autocast maps become bfloat16 in the first steps.
    assert graphs[0].replays >= (2 if autocast else 2 * (T - eager)) and len(graphs) == 1


def test_random_initial_states_of_streams(graphs: list[Graph]):
    model = small(init_state="xavier")
    stream = graphed_step(model, clip()[:, 0])
    for seed in (1, 2):
        torch.manual_seed(seed)
        found = stream(clip()[:, 0])
        torch.manual_seed(seed)
        assert_same([found], [model.step(clip()[:, 0])[0].detach()])
        stream.reset()


@pytest.mark.parametrize("change", [None, *CHANGES.values()], ids=["autocast", *CHANGES])
def test_a_sequence_goes_on_when_something_changes(
    change: Callable[[MotionRNN], Any] | None, graphs: list[Graph]
):
    model, frames, state = small(), clip(), None
    stream = graphed_step(model, frames[:, 0])
    for t in range(T):
        if t == 2 and change is not None:
            change(model)
        context = torch.autocast("cpu", torch.bfloat16) if t >= 2 and change is None else nullcontext()
        with context, torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = stream(frames[:, t])
            expected, state = model.step(frames[:, t], state)
        assert_same([found], [expected])
    assert len(graphs) == 2


def test_a_state_that_grows_for_ever_is_refused(graphs: list[Graph]):
    with pytest.raises(
        ValueError, match="the state of 'e3d_lstm' still grows after 64 steps; it should have one"
    ):
        graphed_step(small("e3d_lstm"), clip()[:, 0])


def test_another_frame_than_the_example_is_refused(graphs: list[Graph]):
    stream = graphed_step(small(), clip()[:, 0])
    with pytest.raises(
        ValueError, match=r"frame is \(3, 1, 8, 12\) of torch.float32 on cpu; it should be \(2, 1, 8, 12\) of"
    ):
        stream(clip(batch=3)[:, 0])
    assert not stream(clip(requires_grad=True)[:, 0]).requires_grad
    with pytest.raises(ValueError, match="of torch.float64 on cpu"):
        stream(clip()[:, 0].double())
    with pytest.raises(TypeError, match="frames is a list; it should be a torch.Tensor"):
        graphed_step(small(), [1.0])  # type: ignore[arg-type]
