"""MotionRNN: shapes, rollouts, states, variants and ablations."""

from __future__ import annotations

import itertools

import pytest
import torch
from golden import relative_error

from motionrnn_ext.layers.cells import CELLS, LSTMState
from motionrnn_ext.models import MotionRNN, MotionRNNState
from motionrnn_ext.models.patches import fold_patches, unfold_patches

PREDICTORS = list(CELLS)
VARIANTS = ["paper", "official"]


def small(predictor: str = "convlstm", variant: str = "paper", seed: int = 0, **options) -> MotionRNN:
    """A float64 net of three layers with every parameter drawn, so that all of it takes part."""
    channels, patch_size = options.pop("in_channels", 1), options.pop("patch_size", 2)
    options.setdefault("image_size", (8, 12))  # only nets with parameters per position look at it
    model = MotionRNN(predictor, channels, (8, 8, 8), patch_size, variant, filter_size=3, **options).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zeros(cell, *size: int) -> torch.Tensor:
    return torch.zeros(cell.hidden_shape(*size), dtype=torch.float64)


def test_patches_are_folded_rows_columns_colours() -> None:
    x = frames(2, 3, 3, 8, 4)
    folded = fold_patches(x, 4)
    assert folded.shape == (2, 3, 48, 2, 1)
    for a, b, c in itertools.product(range(4), range(4), range(3)):
        assert torch.equal(folded[:, :, (a * 4 + b) * 3 + c], x[:, :, c, a::4, b::4])
    assert torch.equal(unfold_patches(folded, 4), x)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("batch", "total", "n_input", "size"), [(1, 2, 1, (4, 8)), (3, 5, 3, (12, 8))])
def test_any_batch_length_and_size(predictor, variant, batch, total, n_input, size) -> None:
    model = small(predictor, variant, in_channels=3, image_size=size)
    x = frames(batch, total, 3, *size)
    out, motion = model(x, n_input, return_motion=True)
    assert out.shape == (batch, total - 1, 3, *size)
    assert len(motion) == 2
    depth = (2,) if predictor == "e3d_lstm" else ()
    for interface in motion:
        assert interface.offset.shape == (batch, total - 1, *depth, 18, size[0] // 4, size[1] // 4)
        assert interface.trend.shape == interface.offset.shape
    out.sum().backward()
    # Of two frames no change can be seen: MIM-N is not run.
    missing = [
        name for name, p in model.named_parameters() if p.grad is None and ".nonstationary." not in name
    ]
    assert not missing
    assert model(x[:0], n_input).shape == (0, total - 1, 3, *size)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_all_switches_off_is_the_base_predictor(predictor: str, variant: str) -> None:
    model = small(predictor, variant, motion_gru=False, highway=False, image_size=(6, 10))
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"cells", "conv_last"}
    x = frames(2, 4, 1, 6, 10)  # 3x5 maps: only a MotionGRU needs even ones
    state = [cell.initial_state(zeros(cell, 2, 3, 5)) for cell in model.cells]
    memory = model.cells[0].initial_memory(zeros(model.cells[0], 2, 3, 5))
    prediction, expected = None, []
    for t in range(3):
        h = fold_patches(x[:, t], 2) if t < 2 else prediction
        h = model.cells[0].embed(h, state[0])
        for level, cell in enumerate(model.cells):
            h, state[level], memory = cell(h, state[level], memory)
        prediction = model.conv_last(h.flatten(1, -3))
        expected.append(unfold_patches(prediction, 2))
    # A rollout joins convolutions, and so sums in another order.
    assert relative_error(model(x, 2), torch.stack(expected, 1).detach()) <= 1e-13


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_the_wiring_of_layers_highway_and_motion(predictor: str, variant: str) -> None:
    """The stack as the papers draw it, around cells and MotionGRUs that have tests of their own."""
    model, x, total = small(predictor, variant), frames(2, 5, 1, 8, 12), 5
    official = variant == "official"
    state = [cell.initial_state(zeros(cell, 2, 4, 6)) for cell in model.cells]
    memory, motion = model.cells[0].initial_memory(zeros(model.cells[0], 2, 4, 6)), [None] * 3
    expected = []
    for t in range(total - 1):
        u = fold_patches(x[:, t], 2) if t < 2 else fold_patches(expected[-1], 2)
        u = model.cells[0].embed(u, state[0])
        weight = model.conv_first.weight[:, :, 0, 0] if official else None
        highway = torch.einsum("oc,bc...->bo...", weight, u) if official else None
        for level in range(3):
            block, state[level], memory = model.cells[level](u, state[level], memory, highway)
            highway = block
            u = block
            if level < 2:
                u, motion[level] = model.interfaces[level](block, motion[level])
            state[level] = state[level]._replace(hidden=u if official else block)
        expected.append(unfold_patches(model.conv_last(u.flatten(1, -3)), 2))
    assert relative_error(model(x, 2), torch.stack(expected, 1).detach()) <= 1e-13


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_each_ablation_changes_the_result_and_only_where_it_should(predictor: str) -> None:
    x = frames(2, 5, 1, 8, 12)
    full = small(predictor)(x, 2)
    without_trend, no_trend = small(predictor, trend=False)(x, 2, return_motion=True)
    without_transient, no_transient = small(predictor, transient=False)(x, 2, return_motion=True)
    assert all(interface.trend.eq(0).all() for interface in no_trend)
    assert all(torch.equal(*interface) for interface in no_transient)
    # From zero motion the trend is still zero after one step, so dropping it shows from the second on.
    assert relative_error(without_trend[:, 0], full[:, 0].detach()) <= 1e-12
    assert (full[:, 1:] - without_trend[:, 1:]).abs().amax((0, 2, 3, 4)).gt(1e-9).all()
    assert (full - without_transient).abs().amax((0, 2, 3, 4)).gt(1e-9).all()
    assert small(predictor, highway=False)(x, 2).sub(full).abs().max() > 1e-6


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_carry_shows_from_the_second_step(predictor: str) -> None:
    x = frames(2, 4, 1, 8, 12)
    block, motion = (small(predictor, carry=carry)(x, 3) for carry in ("block", "motion"))
    assert torch.equal(block[:, 0], motion[:, 0])
    assert (block - motion)[:, 1:].abs().amax((0, 2, 3, 4)).gt(1e-9).all()


def test_gate_sides_are_equal_up_to_the_gates_sign() -> None:
    decoded, hidden = small(gate_side="decoded"), small(gate_side="hidden")
    for interface in hidden.interfaces:
        interface.gate.weight.data.neg_()
        interface.gate.bias.data.neg_()
    x = frames(2, 5, 1, 8, 8)
    expected = decoded(x, 2)
    assert relative_error(hidden(x, 2), expected.detach()) <= 1e-13
    assert small(gate_side="hidden")(x, 2).sub(expected).abs().max() > 1e-6


def test_variants_differ_by_their_options_alone() -> None:
    options = {
        "carry": "motion",
        "gate_side": "decoded",
        "encoder_kernel_size": 5,
        "gate_kernel_size": 3,
        "mask_kernel_size": 3,
        "blend_kernel_size": 5,
        "highway_first": True,
        "zero_init": True,
    }
    torch.manual_seed(0)
    official = MotionRNN("predrnn", 1, (8, 8), 2, "official")
    torch.manual_seed(0)
    overridden = MotionRNN("predrnn", 1, (8, 8), 2, "paper", **options)
    x = torch.rand(1, 4, 1, 8, 8)
    assert torch.equal(official(x, 2), overridden(x, 2))


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_states_are_deterministic_and_blind_to_the_batch(predictor: str, variant: str) -> None:
    model, x = small(predictor, variant), frames(3, 5, 1, 8, 12)
    out = model(x, 2)
    assert torch.equal(out, model(x, 2))
    for b in range(3):
        assert relative_error(model(x[b : b + 1], 2), out[b : b + 1].detach()) <= 1e-12


def test_layer_norm_belongs_to_one_image_size() -> None:
    model = small("predrnn", layer_norm=True, image_size=(8, 12))
    assert model(frames(2, 3, 1, 8, 12), 1).shape == (2, 2, 1, 8, 12)
    with pytest.raises(
        ValueError, match="frames are 12x8; parameters per position were made for image_size 8x12 only"
    ):
        model(frames(2, 3, 1, 12, 8), 1)


def test_sampling_mask_ordinary() -> None:
    """1 is the true frame, 0 the prediction, between a mixture; only steps from n_input on are sampled."""
    model, x = small(), frames(2, 5, 1, 8, 8)
    ones, zeros = torch.ones(2, 2, 1, 1, 1), torch.zeros(2, 2, 1, 8, 8)
    assert torch.equal(model(x, 2, zeros), model(x, 2))
    assert torch.equal(model(x, 2, ones), model(x, 5))
    mask = frames(2, 2, 1, 8, 8, seed=1)  # per element, as the official program's
    first = model(x, 2)[:, 1]
    mixed = x.clone()
    mixed[:, 2] = mask[:, 0] * x[:, 2] + (1 - mask[:, 0]) * first
    second = model(mixed, 3)[:, 2]
    mixed[:, 3] = mask[:, 1] * x[:, 3] + (1 - mask[:, 1]) * second
    assert relative_error(model(x, 2, mask), model(mixed, 5).detach()) <= 1e-13


def test_sampling_mask_reverse() -> None:
    """The mask covers every step but the first, given frames included."""
    model, x = small(), frames(2, 5, 1, 8, 8)
    mask = torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1, 1)
    mixed = x.clone()
    mixed[:, 2] = model(x, 2)[:, 1]
    assert relative_error(model(x, 3, mask, reverse_sampling=True), model(mixed, 5).detach()) <= 1e-13
    per_frame = mask.expand(2, 3, 1, 8, 8).contiguous()
    assert torch.equal(
        model(x, 3, mask, reverse_sampling=True), model(x, 3, per_frame, reverse_sampling=True)
    )


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_predict_and_step_are_the_rollout_of_forward(predictor: str, variant: str) -> None:
    model, x = small(predictor, variant), frames(2, 6, 1, 8, 12)
    out = model(x, 3).detach()
    predicted = model.predict(x[:, :3], 3)
    assert relative_error(predicted, out[:, 2:]) <= 1e-13 and not predicted.requires_grad
    state, frame, streamed = None, None, []
    for t in range(5):
        frame, state = model.step(x[:, t] if t < 3 else frame, state)
        streamed.append(frame)
    assert relative_error(torch.stack(streamed, 1).detach(), out) <= 1e-13


def test_state_continues_a_sequence_and_gets_gradients() -> None:
    model, x = small("predrnn"), frames(2, 5, 1, 8, 8)
    state = None
    for t in range(2):
        _, state = model.step(x[:, t], state)
    assert relative_error(model(x[:, 2:], 3, state=state), model(x, 5)[:, 2:].detach()) <= 1e-13
    start = MotionRNNState(*model.initial_state(2, 8, 8))
    tensors = [t.clone().requires_grad_() for layer in start.layers for t in layer]
    layers = tuple(LSTMState(*pair) for pair in zip(tensors[::2], tensors[1::2]))
    model(x, 2, state=start._replace(layers=layers)).sum().backward()
    assert all(t.grad is not None and t.grad.abs().max() > 0 for t in tensors)


@pytest.mark.parametrize("trend", [True, False])
def test_xavier_states_are_the_official_draws(trend: bool) -> None:
    """Per layer one draw (H = C), per interface one unused and one for F = D, then M and an unused
    highway."""
    model = MotionRNN("predrnn", 1, (8, 8, 8), 2, "official", init_state="xavier", trend=trend)
    state = model.initial_state(3, 16, 24, torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)

    def draw(channels: int, h: int, w: int) -> torch.Tensor:
        std = (2 / ((channels + 3) * h * w)) ** 0.5
        return torch.empty(3, channels, h, w).normal_(0, std, generator=generator)

    for hidden, cell in state.layers:
        expected = draw(8, 8, 12)
        assert torch.equal(hidden, expected) and torch.equal(cell, hidden)
    for offset, momentum in state.motion:
        draw(2, 4, 6)
        expected = draw(18, 4, 6)
        assert torch.equal(offset, expected)
        assert torch.equal(momentum, offset) if trend else momentum.eq(0).all()
    assert torch.equal(state.memory, draw(8, 8, 12))
    draw(8, 8, 12)
    assert torch.equal(torch.rand(4, generator=generator), torch.rand(4, generator=after_draws(model)))

    x = torch.rand(3, 4, 1, 16, 24)
    one, same, other = (model(x, 2, generator=torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(one, model(x, 2, state=state)) and torch.equal(one, same)
    assert not torch.equal(one, other)
    predicted = model.predict(x[:, :2], 2, generator=torch.Generator().manual_seed(5))
    assert torch.equal(predicted, one[:, 1:])


def after_draws(model: MotionRNN) -> torch.Generator:
    generator = torch.Generator().manual_seed(5)
    model.initial_state(3, 16, 24, generator)
    return generator


BASE = {"motion_gru": False, "highway": False}


@pytest.mark.parametrize(
    ("predictor", "channels", "width", "variant", "options", "count"),
    [
        ("predrnn", 3, 64, "official", {}, 7_214_657),
        ("predrnn", 1, 64, "official", {}, 6_852_161),
        ("predrnn", 1, 128, "official", {}, 26_911_553),
        ("predrnn", 3, 64, "paper", BASE, 6_410_240),
        ("predrnn", 1, 64, "paper", BASE, 6_049_792),
        ("predrnn", 1, 128, "paper", BASE, 23_838_720),
        ("convlstm", 1, 64, "paper", BASE, 2_970_624),
        ("convlstm", 3, 64, "paper", BASE, 3_177_472),
        ("convlstm", 3, 64, "official", {"highway_first": False}, 3_978_817),
    ],
)
def test_parameter_counts(predictor, channels, width, variant, options, count) -> None:
    """Four layers, 5x5 filters, patches of 4, against the released programs' own counts."""
    with torch.device("meta"):
        model = MotionRNN(predictor, channels, [width] * 4, 4, variant, **options)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: m(frames(2, 4, 1, 6, 8), 2),
            ValueError,
            r"frames are 6x8; both should be divisible by 4 \(2\*patch",
        ),
        (lambda m: m(frames(2, 4, 3, 8, 8), 2), ValueError, r"should be \(B, T, 1, H, W\)"),
        (lambda m: m(frames(2, 1, 8, 8), 2), ValueError, r"frames has shape \(2, 1, 8, 8\)"),
        (lambda m: m.step(frames(2, 4, 1, 8, 8)), ValueError, r"should be \(B, 1, H, W\)"),
        (lambda m: m(frames(2, 4, 1, 8, 8).mul(255).byte(), 2), TypeError, "frames has dtype torch.uint8"),
        (lambda m: m(frames(2, 4, 1, 8, 8), 5), ValueError, "n_input is 5 and T 4"),
        (lambda m: m(frames(2, 4, 1, 8, 8), 0), ValueError, "n_input is 0 and T 4"),
        (lambda m: m.predict(frames(2, 4, 1, 8, 8), 0), ValueError, "n_future is 0"),
        (
            lambda m: m(frames(2, 4, 1, 8, 8), 2, torch.ones(2, 2, 1, 8, 8)),
            ValueError,
            r"sampling_mask has shape \(2, 2, 1, 8, 8\); it should broadcast to \(2, 1, 1, 8, 8\)",
        ),
        (
            lambda m: m(frames(2, 4, 1, 8, 8), 2, torch.ones(2, 1, 1, 1, 1) * 1j),
            TypeError,
            "sampling_mask has dtype torch.complex64; it should be floating point",
        ),
        (lambda m: m(frames(2, 4, 1, 8, 8), 2, state=m.initial_state(1, 8, 8)), ValueError, "state has"),
    ],
)
def test_bad_input_is_named(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call(small())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("lstm", 1, (8,), 2), {}, ValueError, "unknown predictor 'lstm'; known: convlstm"),
        (("predrnn", 1, (8,), 2, "mine"), {}, ValueError, "variant is 'mine'; known: paper, official"),
        (("predrnn", 1, (8,), 2), {"cary": "block"}, TypeError, "unknown option 'cary'; known: carry"),
        (("predrnn", 1, (8,), 2), {"carry": "both"}, ValueError, "carry is 'both'; it should be 'block' or"),
        (("predrnn", 1, (), 2), {}, ValueError, r"hidden_channels is \(\)"),
        (("convlstm", 1, (8, 4), 2), {}, ValueError, "with a highway all layers should be equal"),
        (("predrnn", 1, (8, 4), 2), {"highway": False}, ValueError, "with the memory of 'predrnn'"),
        (("predrnn", 1, (8,), 2), {"layer_norm": True}, ValueError, "image_size is None; layer_norm needs"),
    ],
)
def test_bad_arguments_are_named(arguments, options, error, message: str) -> None:
    with pytest.raises(error, match=message):
        MotionRNN(*arguments, **options)
