"""Measure where the time of a whole rollout goes, beside what was predicted before any of it had run on a GPU.

    python -m motionrnn_ext.benchmarks.gpu.rollouts ROLLOUTS [--seconds 150] [--compile]
    python -m motionrnn_ext.benchmarks.gpu.rollouts ROLLOUTS --dry-run    # a tiny model on the CPU, without graphs

The predictions are those of a model of an H200: counted launches and FLOP with assumed times per launch. A pass is
forward and backward of the human36m setting, MotionRNN-PredRNN of the official variant; without an optimiser. Last come
steps of a MotionGRU by itself, with kernels and with PyTorch's convolutions, and which is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType

import motionrnn_ext
from motionrnn_ext import MotionRNN

from .. import wording
from ..cases import DRY_RUN, HUMAN36M, ModelSetting
from ..measuring import timing
from . import motion_gru_sides

CHANNELS_LAST, NCHW = torch.channels_last, torch.contiguous_format
BFLOAT16, TF32 = torch.bfloat16, None
NOT_BUILT = "not measured: it is not built"
# Parts of the names of cuDNN's kernels that copy maps from one layout to another.
LAYOUT_KERNELS = ("nchwToNhwc", "nhwcToNchw", "nchwTonhwc", "nhwcTonchw", "tensorTransform")


class Bench:
    """The device, the setting of the model, and the clock of all experiments."""

    def __init__(self, device: str, compiles: bool) -> None:
        self.device, self.on_gpu, self.compiles = device, device == "cuda", compiles
        self.setting: ModelSetting = HUMAN36M if self.on_gpu else DRY_RUN
        self.repeats = 15 if self.on_gpu else 1

    def model(self, layout: torch.memory_format, **parts: Any) -> MotionRNN:
        s = self.setting
        torch.manual_seed(0)
        model = MotionRNN(
            "predrnn", s.channels, s.hidden, s.patch, "official", filter_size=s.filter_size, **parts
        )
        made: MotionRNN = model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        return made

    def frames(self, batch: int) -> Tensor:
        s = self.setting
        return torch.rand(batch, s.total, s.channels, s.size, s.size, device=self.device)

    def autocast(self, dtype: torch.dtype | None) -> torch.autocast:
        return torch.autocast(self.device, dtype or torch.bfloat16, enabled=dtype is not None)

    def pass_(
        self,
        dtype: torch.dtype | None,
        layout: torch.memory_format,
        batch: int = 8,
        graph: bool = True,
        call: Callable[[MotionRNN], Callable[[Tensor], Tensor]] | None = None,
        **parts: Any,
    ) -> Callable[[], None]:
        """Return a forward and backward of the model, from graphs on a GPU, or of what `call` makes of the model."""
        model, frames, given = self.model(layout, **parts), self.frames(batch), self.setting.given
        with self.autocast(dtype):
            if call is not None:
                rollout = call(model)
            elif graph and self.on_gpu:
                rollout = motionrnn_ext.graphed(model, frames, given)
            else:
                rollout = lambda frames: model(frames, given)  # noqa: E731

        def run() -> None:
            model.zero_grad()
            with self.autocast(dtype):
                out = rollout(frames)
            out.backward(torch.ones_like(out))

        return run

    def ms(self, call: Callable[[], Any]) -> float:
        """Return the median time of a call, the host's share included."""
        call(), call()
        return statistics.median(self._once(call) for _ in range(self.repeats))

    def _once(self, call: Callable[[], Any]) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if self.on_gpu:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - started)

    def kernels(self, call: Callable[[], Any]) -> list[str]:
        """Return the names of all kernels of a call; in a dry run those of its ops."""
        activity = torch.profiler.ProfilerActivity
        kind = DeviceType.CUDA if self.on_gpu else DeviceType.CPU
        call()
        with torch.profiler.profile(activities=[activity.CUDA if self.on_gpu else activity.CPU]) as profile:
            call()
            if self.on_gpu:
                torch.cuda.synchronize()
        return [event.name for event in profile.events() if event.device_type == kind]

    def node_us(self, call: Callable[[], Any]) -> float:
        """Return the time of one of 256 dependent calls in a graph; in a dry run of one call."""
        if not self.on_gpu:
            return 1e3 * self.ms(call)
        graph, count = timing.captured([call] * timing.GRAPH_CALLS)
        return timing.device_us(graph.replay, repeats=21) / count


# ---- The experiments: each returns what was measured, in words


def eager_pass(bench: Bench) -> str:
    return f"{bench.ms(bench.pass_(TF32, NCHW, graph=False)):.1f} ms"


def graphed_pass(dtype: torch.dtype | None, layout: torch.memory_format) -> Callable[[Bench], str]:
    def measure(bench: Bench) -> str:
        run = bench.pass_(dtype, layout)
        return f"{bench.ms(run):.1f} ms, {len(bench.kernels(run)):,} kernels"

    return measure


def layout_kernels(bench: Bench) -> str:
    found = []
    for name, dtype in (("tf32", TF32), ("bf16", BFLOAT16)):
        names = bench.kernels(bench.pass_(dtype, NCHW, graph=False))
        helpers = sum(any(part in kernel for part in LAYOUT_KERNELS) for kernel in names)
        found.append(f"{name} {helpers:,} of {len(names):,}")
    return ", ".join(found)


def motion_gru_share(bench: Bench) -> str:
    shares = []
    for batch in (1, 8, 32) if bench.on_gpu else (1, 2):
        whole, base = (
            bench.ms(bench.pass_(BFLOAT16, CHANNELS_LAST, batch, motion_gru=part)) for part in (True, False)
        )
        shares.append(f"{1 - base / whole:.0%}")
    return " / ".join(shares)


def dependent_nodes(bench: Bench) -> str:
    one, pair = torch.zeros(1, device=bench.device), torch.zeros(8, 64, 32, 32, device=bench.device)
    return " / ".join(f"{bench.node_us(partial(t.add_, 1)):.2f} us" for t in (one, pair.bfloat16()))


def weight_gradients(bench: Bench) -> str:
    """Return the times of 7 weight gradients of 8 maps, and of one of 56."""
    channels, size = (64, 32) if bench.on_gpu else (4, 8)
    weight = torch.zeros(7 * channels, channels, 5, 5, device=bench.device, dtype=torch.bfloat16)
    weight = weight.contiguous(memory_format=CHANNELS_LAST)

    def gradient(batch: int) -> Callable[[], Any]:
        x, g = (
            torch.ones(batch, c, size, size, device=bench.device, dtype=torch.bfloat16).contiguous(
                memory_format=CHANNELS_LAST
            )
            for c in (channels, 7 * channels)
        )
        options = ([1, 1], [2, 2], [1, 1], False, [0, 0], 1, [False, True, False])
        return lambda: torch.ops.aten.convolution_backward(g, x, weight, None, *options)

    each, once = (bench.node_us(gradient(batch)) for batch in (8, 56))
    return f"7 x {each:.0f} us / {once:.0f} us"


@contextmanager
def cudnn_benchmark(value: bool) -> Iterator[None]:
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, value
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def cudnn_choice(bench: Bench) -> str:
    times = []
    for value in (False, True):
        with cudnn_benchmark(value):
            times.append(bench.ms(bench.pass_(BFLOAT16, CHANNELS_LAST)))
    return f"{1 - times[1] / times[0]:.0%} ({times[0]:.1f} to {times[1]:.1f} ms)"


def compiled_passes(bench: Bench) -> str:
    """Return the times of torch.compile(mode="reduce-overhead") of the model on the reference backend."""
    if not bench.compiles:
        return "not measured: it takes minutes, --compile"

    def compiled(model: MotionRNN) -> Callable[[Tensor], Tensor]:
        mode: dict[str, Any] = {"mode": "reduce-overhead"} if bench.on_gpu else {"backend": "eager"}
        made: Any = torch.compile(partial(model, n_input=bench.setting.given), **mode)

        def copied(frames: Tensor) -> Tensor:
            out: Tensor = made(frames).clone()
            return out

        return copied

    found = []
    with motionrnn_ext.backend("reference"):
        for dtype, layout in ((TF32, NCHW), (BFLOAT16, CHANNELS_LAST)):
            started = time.perf_counter()
            run = bench.pass_(dtype, layout, call=compiled)
            run()
            took = time.perf_counter() - started
            found.append(f"{bench.ms(run):.1f} ms, compiled in {took:.0f} s")
    return " / ".join(found)


def inference_step(bench: Bench) -> str:
    model, frame = bench.model(CHANNELS_LAST), bench.frames(1)[:, 0]
    with torch.no_grad(), bench.autocast(BFLOAT16):
        if bench.on_gpu:
            stream = motionrnn_ext.graphed_step(model, frame)
            return f"{1e3 * bench.ms(lambda: stream(frame)):.0f} us"
        return f"{1e3 * bench.ms(lambda: model.step(frame)):.0f} us"


# What is measured, the prediction, how. Bfloat16 is autocast's.
EXPERIMENTS: tuple[tuple[str, str, Callable[[Bench], str]], ...] = (
    ("pass, B8, eager, NCHW, tf32", "32 ms or more", eager_pass),
    ("pass, B8, graph, NCHW, tf32", "24 to 30 ms, 5,000 kernels", graphed_pass(TF32, NCHW)),
    ("pass, B8, graph, channels_last, tf32", "18 to 22 ms", graphed_pass(TF32, CHANNELS_LAST)),
    (
        "pass, B8, graph, channels_last, bf16",
        "12 to 15 ms, 2,700 kernels",
        graphed_pass(BFLOAT16, CHANNELS_LAST),
    ),
    ("one of 256 dependent nodes: empty / B8 pointwise", "1.0 to 1.3 us / 2.0 to 2.4 us", dependent_nodes),
    ("MotionGRU's share of the bf16 graph, B1 / B8 / B32", "45% / 33% / 22%", motion_gru_share),
    ("gain by cudnn.benchmark, B8, bf16", "5% to 15%", cudnn_choice),
    ("weight gradients 64 to 448, 5x5: 7 of B8 / one of B56", "7 x 33 us / 180 to 200 us", weight_gradients),
    ("layout kernels of an NCHW pass", "bf16 3 per convolution, tf32 0 to 3", layout_kernels),
    ("inference step, B1, graph, bf16", "355 us", inference_step),
    ("inference step, B1, with side streams", "310 us", lambda _: NOT_BUILT),
    ("warp backward in blocks of 3 warps", "10% to 25% less time", lambda _: NOT_BUILT),
    (
        "pass, B8, reference by torch.compile: NCHW, tf32 / channels_last, bf16",
        "25 to 28 ms / 13 to 15 ms, compiled in 2 to 6 minutes",
        compiled_passes,
    ),
    *motion_gru_sides.experiments(),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="ROLLOUTS", help="write the results to this JSON file")
    parser.add_argument("--seconds", type=float, default=150, help="start no experiment after this time")
    parser.add_argument(
        "--compile", action="store_true", help="measure torch.compile too, which takes minutes"
    )
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU, without graphs")
    options = parser.parse_args()
    bench = Bench("cpu" if options.dry_run else "cuda", options.compile or options.dry_run)
    motionrnn_ext.set_backend("cpu" if options.dry_run else "auto")
    results, started, failures = [], time.monotonic(), 0
    for what, predicted, measure in EXPERIMENTS:
        try:
            late = time.monotonic() - started > options.seconds
            measured = "not measured: no time left" if late else measure(bench)
        except Exception as error:
            measured, failures = f"failed: {' '.join(str(error).split())[:200]}", failures + 1
        results.append({"what": what, "predicted": predicted, "measured": measured})
        print(f"{what}: {measured} ({'dry run; ' * options.dry_run}predicted: {predicted})", flush=True)
        options.out.write_text(
            json.dumps({"dry_run": options.dry_run, "experiments": results}, indent=1) + "\n"
        )
        if bench.on_gpu:
            torch.cuda.empty_cache()
    return 1 if failures else 0


def table(path: Path) -> str:
    """Return the results in a table, or a sentence if there are none or they are those of a dry run."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"dry_run": True}
    if found["dry_run"]:
        return "A GPU is needed to measure them."
    rows = [(e["what"], e["predicted"], e["measured"]) for e in found["experiments"]]
    return wording.table(("rollout of human36m", "predicted", "measured"), rows)


if __name__ == "__main__":
    sys.exit(main())
