"""Our offset warp and MotionGRUCell against the official program's Warp and MotionGRU, on the CPU.

    python benchmarks/against_official.py --official PATH

PATH is a checkout of thuml/MotionRNN. Same weights and inputs; outputs and all gradients are compared before
anything is timed. Each round times both, one after the other, forward and backward with gradients for all inputs
and parameters; the medians over the rounds are reported. Both run under the same malloc settings (printed):
untuned glibc hands large blocks back to the kernel at every free, which costs the official program more than half
of its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from machine import description, with_tuned_malloc


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--official", required=True, type=Path, help="checkout of thuml/MotionRNN")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--default-malloc", action="store_true", help="leave malloc as it is")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    options = parser.parse_args()
    if not (options.official / "core" / "layers" / "MotionGRU.py").is_file():
        sys.exit(f"--official: {options.official} holds no core/layers/MotionGRU.py")
    if not options.default_malloc:
        with_tuned_malloc()
    run(options)


def run(options: argparse.Namespace) -> None:
    import torch
    from cases import MAPS

    sys.path.insert(0, str(options.official))
    warnings.filterwarnings("ignore")  # deprecated hooks and meshgrid of the official module
    torch.set_num_threads(options.threads)
    machine = description()
    print("{cpu}, torch {torch}, {threads} threads, malloc {malloc}, fp32".format(**machine))
    print(f"forward + backward, medians of {options.rounds} interleaved rounds")
    rows = []
    for shape in MAPS:
        for name, pair in (("offset_warp", op_pair), ("Warp", warp_pair), ("MotionGRUCell", cell_pair)):
            official, ours = pair(shape)
            difference = compare(official, ours)
            official_ms, ours_ms = interleaved(official, ours, options.rounds)
            rows.append({"op": name, "shape": str(shape), "official_ms": official_ms, "ours_ms": ours_ms,
                         "ratio": official_ms / ours_ms, "difference": difference})  # fmt: skip
            print(f"{name:14} {shape!s:16} official {official_ms:8.2f} ms   ours {ours_ms:8.2f} ms   "
                  f"{official_ms / ours_ms:5.1f}x   largest difference {difference:.1e}", flush=True)  # fmt: skip
    if options.json:
        options.json.write_text(
            json.dumps({**machine, "rounds": options.rounds, "rows": rows}, indent=1) + "\n"
        )


def randomise(module) -> None:
    """Weights N(0, 1/fan_in): the official zero initialisation would leave the gates shut."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 10
            parameter.normal_(0, fan_in**-0.5)


def step_of(function: Callable, inputs: list, parameters: list, uncompared: tuple = ()) -> Callable:
    """A forward and backward step that returns outputs and gradients, those of `uncompared` computed but left out."""
    import torch

    shapes = [o.shape for o in as_tuple(function(*inputs))]
    generator = torch.Generator().manual_seed(2)
    cotangents = [torch.randn(s, generator=generator) for s in shapes]

    def step():
        outputs = as_tuple(function(*inputs))
        grads = torch.autograd.grad(outputs, [*inputs, *parameters, *uncompared], cotangents)
        return outputs, grads[: len(inputs) + len(parameters)]

    return step


def as_tuple(value) -> tuple:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def warp_inputs(shape):
    import torch
    from core.layers.MotionGRU import Warp

    torch.manual_seed(0)
    official = Warp(shape.channels, shape.channels, 3)
    randomise(official)
    x = torch.randn(shape.batch, shape.channels, shape.size, shape.size, requires_grad=True)
    offset = torch.randn(shape.batch, 18, shape.size, shape.size, requires_grad=True)
    return official, x, offset


def warp_pair(shape):
    """The whole Warp: the mask's convolution and the op."""
    import torch.nn.functional as F

    from motionrnn_ext import ops

    official, x, offset = warp_inputs(shape)
    gate = official.warp_gate

    def ours(x, offset):
        mask_logits = F.conv2d(x, gate.weight, gate.bias, padding=1)
        return ops.offset_warp(x, offset, mask_logits, official.conv.weight)

    parameters = list(official.parameters())
    return (step_of(lambda x, offset: official([x, offset]), [x, offset], parameters),
            step_of(ours, [x, offset], parameters))  # fmt: skip


def op_pair(shape):
    """The op by itself, mask logits given; the official Warp makes its own, and so has other gradients for x."""
    from motionrnn_ext import ops

    official, x, offset = warp_inputs(shape)
    mask_logits = official.warp_gate(x).detach().requires_grad_()
    weight = official.conv.weight
    return (step_of(lambda offset: official([x, offset]), [offset], [weight], (x, *official.warp_gate.parameters())),
            step_of(lambda offset: ops.offset_warp(x, offset, mask_logits, weight), [offset], [weight],
                    (x, mask_logits)))  # fmt: skip


def cell_pair(shape):
    import torch
    from core.layers.MotionGRU import MotionGRU as Official

    from motionrnn_ext import MotionGRUCell

    torch.manual_seed(0)
    official = Official(shape.channels, 18, 3)
    randomise(official)
    ours = MotionGRUCell(shape.channels)
    ours.load_state_dict(official.state_dict(), strict=True)
    x = torch.randn(shape.batch, shape.channels, shape.size, shape.size, requires_grad=True)
    offset, trend = (
        torch.randn(shape.batch, 18, shape.size, shape.size, requires_grad=True) for _ in range(2)
    )
    mine = dict(ours.named_parameters())
    return (step_of(official, [x, offset, trend], list(official.parameters())),
            step_of(ours, [x, offset, trend], [mine[n] for n, _ in official.named_parameters()]))  # fmt: skip


def compare(official: Callable, ours: Callable) -> float:
    """The largest relative difference of any output (by maximum) or gradient (by norm).

    By norm, because the gradient of a bilinear sample jumps where a coordinate crosses an integer: among a million
    offsets some lie so near that the last bit of float32 decides.
    """
    worst = 0.0
    for part, order in zip(zip(official(), ours(), strict=True), (float("inf"), 2)):
        for theirs, mine in zip(*part, strict=True):
            worst = max(worst, ((theirs - mine).flatten().norm(order) / theirs.flatten().norm(order)).item())
    if worst > 1e-3:
        sys.exit(f"the results differ by {worst:.1e}: not timed")
    return worst


def interleaved(official: Callable, ours: Callable, rounds: int) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for step, kept in ((official, times[0]), (ours, times[1])):
            start = time.perf_counter()
            step()
            kept.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
