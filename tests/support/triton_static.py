"""Triton's result for every kernel, compiled ahead of time for GPUs that need not be there.

    python tests/support/triton_static.py                       print every kernel's figures and what is wrong
    python tests/support/triton_static.py offset_warp_backward  the kernels with this in their name

The kernels are compiled as the launchers launch them: those run on CPU tensors here, and each launch is written down
instead. The test fails on what `broken_promises` finds: spills, stack frames, lost vector accesses and lost matrix
instructions.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
import triton
from case import channels_last
from cases import PARAMETERS, POINTWISE, dense_case
from cuda_binary import INSTRUCTION, Row, Table, counted_as, find_tool, occupancy, run
from static_report import markdown
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHAPE = (16, 16, 64, 64)
CHANNELS = (16, 32, 64)  # of a warp, one for each line of the table of blocks
SMALL_SHAPE = (8, 16, 16, 16)  # where a warp's work is spread
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
OF_TORCH = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64",
}  # fmt: skip


def all_kernels() -> list[Any]:
    """Every kernel of the backend's modules; helper functions have other names."""
    from motionrnn_ext.backends.triton import ops

    folder = f"{ops.__package__}."
    modules = [vars(module) for path, module in sys.modules.items() if path.startswith(folder)]
    found = {name: value for module in modules for name, value in module.items() if name.endswith("_kernel")}
    return list(found.values())


# ---- the launches ------------------------------------------------------------------------------------------


class Launch(NamedTuple):
    """One form of a kernel: its name in the table, and what Triton compiles."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: list[str]  # arguments that are multiples of 16
    options: dict[str, int]


@cache
def launches(precision: str) -> dict[str, Launch]:
    """All forms of all kernels. precision: of float32 products, which differs between makers of GPUs."""
    found: dict[str, Launch] = {}
    for name, dtype in DTYPES.items():
        for op in POINTWISE:
            _record(found, name, partial(_run_pointwise, op, dtype), precision)
        _record(found, name, partial(_run_lstm_steps, dtype), precision)
        for layout in ("", " channels_last"):
            for form, options in GATES_FORMS.items():
                run_gates = partial(_run_gates, dtype, bool(layout), **options)
                _record(found, f"{name}{form}{layout}", run_gates, precision)
            for form, options in GATED_WARP_FORMS.items():
                run_gated = partial(_run_gated_warp, dtype, bool(layout), **options)
                _record(found, f"{name}{form} warp{layout}", run_gated, precision, of=GATED_WARP)
        for channels in CHANNELS:
            for layout in ("", " channels_last"):
                run_warp = partial(_run_warp, SHAPE, dtype, channels, bool(layout))
                _record(found, f"{name} C{channels}{layout}", run_warp, precision)
                run_warp = partial(_run_warp, SMALL_SHAPE, dtype, channels, bool(layout), backward=False)
                _record(found, f"{name} C{channels}{layout} small", run_warp, precision)
                run_blend = partial(_run_decode_blend, dtype, channels, bool(layout))
                _record(found, f"{name} C{channels}{layout}", run_blend, precision)
    return found


def is_compiled(name: str, target: str) -> bool:
    """Whether a form is compiled for a target. More channels are the same code in other blocks, and contiguous maps
    the same in other strides: one target says enough of those."""
    if target == "sm_90":
        return True
    kernel = kernel_of(name)
    has_layouts = kernel in GATES or kernel.startswith(("offset_warp", "decode_blend"))
    has_more_channels = any(f"C{channels}" in name for channels in CHANNELS[1:])
    return not has_more_channels and (not has_layouts or "channels_last" in name)


def kernel_of(name: str) -> str:
    """Return the kernel of a form, such as "gates" of "gates: fp32 packed"."""
    return re.split("[:,]", name)[0]


def _run_pointwise(op: str, dtype: torch.dtype) -> None:
    from motionrnn_ext.backends.triton import motion_gru, recurrent_gates

    made = list(dense_case(op, SHAPE).inputs(dtype, grad=False).values())
    module = motion_gru if hasattr(motion_gru, op) else recurrent_gates
    parameters = PARAMETERS.get(op, ())
    forward, backward = getattr(module, op), getattr(module, f"{op}_backward")
    variants = [made, [*made[:2], None]] if op == "highway_output" else [made]
    for inputs in variants:
        out = forward(*inputs, *parameters)
        grads = out if isinstance(out, tuple) else (out,)
        backward(*grads, *([*inputs[:3], grads[0]] if op == "motion_update" else inputs), *parameters)


def _run_lstm_steps(dtype: torch.dtype) -> None:
    from motionrnn_ext.backends.triton import lstm_steps

    batch, channels, height, width = SHAPE
    one, two, three, four = (
        torch.empty(batch, maps * channels, height, width, dtype=dtype) for maps in (1, 2, 3, 4)
    )
    lstm_steps.st_lstm_update(three, three, one, one, 1.0)
    lstm_steps.st_lstm_update_backward(two, two, one, one, one, three, three, one, one, 1.0)
    for highway in (None, one):
        lstm_steps.summed_output(one, one, one, highway)
        lstm_steps.conv_lstm_update(four, one, highway, 0.5)
        lstm_steps.conv_lstm_update_backward(one, one, four, one, one, highway, 0.5)


# The forms of the gates: the official size, with weights as they are or packed, and the paper's.
GATES_FORMS: dict[str, dict[str, Any]] = {
    "": {"g": 3},
    " packed": {"g": 3, "is_packed": True},
    " 1x1": {"g": 1},
}


def _gates_inputs(
    shape: tuple[int, int, int, int], dtype: torch.dtype, last: bool, g: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return x, F and D, and the weights of the gates and the warp."""
    batch, channels, height, width = shape
    maps = [(channels, dtype), (18, torch.float32), (18, torch.float32)]
    inputs = [torch.empty(batch, c, height, width, dtype=d) for c, d in maps]
    shapes = [(63, channels, g, g), (63,), (36, 18, g, g), (18, 18, g, g), (channels, channels, 3, 3)]
    weights = [torch.empty(shape, dtype=dtype) for shape in shapes]
    return [channels_last(t) if last else t for t in inputs], weights


def _run_gates(dtype: torch.dtype, last: bool, g: int, is_packed: bool = False) -> None:
    from motionrnn_ext.backends.triton import motion_gates as gates

    inputs, weights = _gates_inputs(SHAPE, dtype, last, g)
    packed = gates.motion_gates_pack(*weights) if is_packed else (weights[0][:0].flatten(),) * 2
    forward, backward = packed
    x, offset, _ = inputs
    (x_weight, bias, *others, _), numbers = weights, (0.5, 1e4)
    convolved = (x_weight, *others)
    outputs = gates.launch_forward(*inputs, convolved, bias, forward, *numbers)
    given = gates.Given(*outputs[:3], offset, *outputs[3:], outputs[0])
    gates.launch_backward(x, given, convolved, backward, *numbers)


# The gates and the warp in a rollout, small enough for one launch, and the kernels that they have for themselves. The
# largest batch is that of the largest blocks.
GATED_WARP_FORMS: dict[str, dict[str, Any]] = {
    " packed": {"g": 3},
    " 1x1": {"g": 1},
    " 1x1 large": {"g": 1, "batch": 32},
}
GATED_WARP = ("gated_warp", "update_backward", "inputs_backward", "pixel_gates_backward")


def _run_gated_warp(dtype: torch.dtype, last: bool, g: int, batch: int | None = None) -> None:
    from motionrnn_ext.backends.triton import gated_warp, motion_gates

    usual, *image = SMALL_SHAPE
    is_large = batch is not None
    inputs, weights = _gates_inputs((batch or usual, *image), dtype, last, g)
    forward, backward = motion_gates.motion_gates_pack(*weights)
    numbers, (x, offset, _) = (0.5, 1e4), inputs
    outputs = gated_warp.gated_warp(*inputs, *weights, forward, *numbers)
    given = (*outputs[:3], x, offset, *weights, *outputs[3:], outputs[1], backward, *numbers)
    for deterministic in () if is_large else (False, True):
        gated_warp.gated_warp_backward(*given, 11, deterministic)


def _run_decode_blend(dtype: torch.dtype, channels: int, last: bool) -> None:
    from motionrnn_ext.backends.triton import decode_blend

    batch, _, height, width = SHAPE
    encoded = channels // 4
    warped, maps = (
        torch.empty(batch, c, h, w, dtype=dtype)
        for c, h, w in ((encoded, height // 2, width // 2), (channels, height, width))
    )
    if last:
        warped, maps = channels_last(warped), channels_last(maps)
    decoder, gate = (
        torch.empty(shape, dtype=dtype)
        for shape in ((encoded, channels, 4, 4), (channels, 2 * channels, 1, 1))
    )
    bias = torch.empty(channels, dtype=dtype)
    forward, backward = decode_blend.decode_blend_pack(decoder, gate)
    out, decoded, logits = decode_blend.decode_blend(warped, maps, decoder, bias, gate, bias, forward, True)
    decode_blend.decode_blend_backward(out, maps, decoded, logits, decoder, gate, backward, True)


def _run_warp(
    shape: tuple[int, int, int, int], dtype: torch.dtype, channels: int, last: bool, backward: bool = True
) -> None:
    from motionrnn_ext.backends.triton.offset_warp import offset_warp
    from motionrnn_ext.backends.triton.offset_warp_backward import offset_warp_backward

    batch, _, height, width = shape
    shapes = [(channels, dtype), (18, torch.float32), (9, dtype)]
    inputs = [torch.empty(batch, c, height, width, dtype=d) for c, d in shapes]
    if last:
        inputs = [channels_last(t) for t in inputs]
    inputs.append(torch.empty(channels, channels, 3, 3, dtype=dtype))
    out = offset_warp(*inputs)
    for deterministic in (False, True) if backward else ():
        offset_warp_backward(out, *inputs, 15, deterministic)


def _record(
    found: dict[str, Launch], form: str, call: Callable[[], None], precision: str, of: tuple[str, ...] = ()
) -> None:
    """Note the launches of a call, or those of the kernels `of` alone."""
    from motionrnn_ext.backends.triton import (
        decode_blend,
        gated_warp,
        launch,
        motion_gates,
        offset_warp,
        offset_warp_backward,
    )

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return self.record

        def record(self, *arguments: Any, **named: Any) -> None:
            if of and self.kernel.__name__.removesuffix("_kernel") not in of:
                return
            entry = _entry(self.kernel, form, arguments, named)
            found.setdefault(entry.name, entry)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_launchable", Recorder)
        for module in (decode_blend, gated_warp, motion_gates, offset_warp, offset_warp_backward):
            patch.setattr(module, "PRECISION", precision)
        call()


def _entry(kernel: Any, form: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Launch:
    options = {name: named.pop(name) for name in OPTIONS if name in named}
    values = dict(zip(kernel.arg_names, arguments)) | named
    signature, constants = {}, {}
    for name in kernel.arg_names:
        value = values[name]
        if isinstance(value, Tensor):
            signature[name] = OF_TORCH[value.dtype]
        elif name in named or (isinstance(value, int) and value == 1):  # as Triton specialises
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    divisible = [
        name
        for name, kind in signature.items()
        if kind.startswith("*") or (kind == "i32" and values[name] % 16 == 0)
    ]
    what = kernel.__name__.removesuffix("_kernel")
    if values.get("SQUASH"):
        what += ", a squashed"
    if values.get("HIGHWAY"):
        what += ", highway"
    if values.get("DETERMINISTIC"):
        what += ", deterministic"
    return Launch(f"{what}: {form}", kernel, signature, constants, divisible, options)


# ---- the compiler ------------------------------------------------------------------------------------------


def compiled(launch: Launch, target: str) -> Any:
    place = {name: (i,) for i, name in enumerate(launch.signature)}
    source = ASTSource(
        launch.kernel,
        launch.signature,
        {place[name]: value for name, value in launch.constants.items()},
        {place[name]: [["tt.divisibility", 16]] for name in launch.divisible},
    )
    return triton.compile(source, target=TARGETS[target], options=dict(launch.options))


def compile_one(launch: Launch, target: str) -> Row:
    built = compiled(launch, target)
    row = {"warps": launch.options.get("num_warps", 4), "shared": built.metadata.shared}
    if target.startswith("gfx"):
        return row | _read_amd(built.asm["amdgcn"])
    return row | _read_cubin(built.asm["cubin"], int(target.removeprefix("sm_")), row)


def _read_cubin(cubin: bytes, architecture: int, row: Row) -> Row:
    cuobjdump = find_tool("cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (run(cuobjdump, flag, file.name) for flag in ("-res-usage", "-sass"))
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())
    counts: Counter[str] = Counter()
    for line in sass.splitlines():
        if (found := INSTRUCTION.match(line)) and found[1] != "NOP":
            counts.update(counted_as(found[1]))
            counts.update(["MMA"] if re.match(r"\w*MMA", found[1]) else [])  # HMMA, HGMMA, UTCHMMA
    fraction, limit = occupancy(architecture, 32 * row["warps"], registers, row["shared"])
    return {"registers": registers, "stack": stack, "occupancy": round(fraction, 3), "limit": limit, **counts}


def _read_amd(assembly: str) -> Row:
    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])

    instructions = Counter(re.findall(r"^\t([a-z]\w+)", assembly, re.MULTILINE))

    def count(prefix: str) -> int:
        return sum(n for name, n in instructions.items() if name.startswith(prefix))

    return {
        "registers": number("vgpr_count"),
        "stack": number("private_segment_fixed_size"),
        "instructions": sum(instructions.values()),
        "MMA": count("v_mfma"),
        "load": count("global_load") + count("buffer_load"),
        "atomic": count("global_atomic") + count("buffer_atomic"),
        "scratch": count("scratch_"),
    }


def _compile_named(job: tuple[str, str]) -> tuple[str, str, Row | str]:
    """Compile in a process of its own: launches do not travel between processes, their names do."""
    name, target = job
    torch.set_num_threads(1)
    try:
        return name, target, compile_one(launches(precision_on(target))[name], target)
    except Exception as error:  # of the compiler: any
        return name, target, f"does not compile: {error}"


def precision_on(target: str) -> str:
    return "ieee" if target.startswith("gfx") else "tf32x3"


def compile_all(matching: str = "", targets: Sequence[str] = tuple(TARGETS)) -> tuple[Table, list[str]]:
    """The rows, and what does not compile."""
    names = [name for name in launches("ieee") if matching in name]
    jobs = [(name, target) for name in names for target in targets if is_compiled(name, target)]
    table: Table = {}
    failed = []
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for name, target, row in pool.map(_compile_named, jobs, chunksize=2):
            if isinstance(row, str):
                failed.append(f"{name} for {target}: {row}")
            else:
                table.setdefault(name, {})[target] = row
    return table, failed


# ---- the rules ---------------------------------------------------------------------------------------------


def problems(table: Table) -> list[str]:
    return [
        f"{name} for {target}: {complaint}"
        for name, rows in table.items()
        for target, row in rows.items()
        for complaint in broken_promises(name, row, target)
    ]


GATES = (
    "gates", "candidate", "update_backward", "reset_backward", "inputs_backward", "pixel_gates", "pixel_gates_backward",
    "gated_warp",
)  # fmt: skip
# Accesses of local memory by Triton 3.9 on the target that has most: sm_100 (with 8 warps 6), and sm_120 (8 bytes of a
# thread).
SPILLS = {"inputs_backward: fp32 packed channels_last": 4, "pixel_gates_backward: fp32 1x1": 4}
MULTIPLYING = ("offset_warp", "offset_warp_backward", "decode_blend", "decode_blend_backward", *GATES)


def broken_promises(name: str, row: Row, target: str) -> list[str]:
    """Return what is wrong with a kernel's code, a phrase each."""
    broken = []
    spilled = row.get("LDL/STL", 0) + row.get("scratch", 0)
    if spilled > SPILLS.get(name, 0):
        broken.append(f"{spilled} accesses of local memory (spills)")
    if row["stack"] and name not in SPILLS:
        broken.append(f"a stack frame of {row['stack']} bytes")
    kernel = kernel_of(name)
    if kernel in MULTIPLYING and kernel != "update_backward" and "bf16" in name and not row.get("MMA", 0):
        broken.append("no matrix instructions")
    if kernel in GATES:
        pass  # their maps have 18 channels, which no vector of 16 bytes divides
    elif kernel.startswith("decode_blend"):
        pass  # a quarter of the channels are encoded, and weights have rows of whole 16
    elif kernel.startswith("offset_warp"):
        wide = name.endswith("channels_last") and target.startswith("sm_")  # small forms have narrow blocks
        if kernel == "offset_warp" and wide and not row.get("LDG.128"):
            broken.append("no global load of 16 bytes")
    elif target.startswith("sm_"):
        for load in ("LDG", "STG"):
            if row.get(load, 0) != row.get(f"{load}.128", 0):
                broken.append(f"{row.get(load, 0)} {load}, {row.get(f'{load}.128', 0)} of them of 16 bytes")
    return broken


# ---- the command -------------------------------------------------------------------------------------------

COLUMNS: dict[str, Callable[[Row], str]] = {
    "registers": lambda row: str(row["registers"]),
    "shared memory": lambda row: str(row["shared"]),
    "warps": lambda row: str(row["warps"]),
    "occupancy": lambda row: f"{row['occupancy']:.0%}" if "occupancy" in row else "-",
    "instructions": lambda row: str(row["instructions"]),
    "LDG (16 bytes)": lambda row: f"{row.get('LDG', 0)} ({row.get('LDG.128', 0)})",
    "RED (vectors)": lambda row: f"{row.get('RED', 0)} ({row.get('RED.vector', 0)})",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("matching", nargs="?", default="", help="only kernels whose name contains this")
    options = parser.parse_args()
    table, failed = compile_all(options.matching)
    print(
        f"Triton {triton.__version__}. Where several figures stand: {' / '.join(TARGETS)}, as far as compiled.\n"
    )
    print(markdown(COLUMNS, [(name, list(rows.values())) for name, rows in sorted(table.items())]))
    found = failed + problems(table)
    print("", *found or [f"{len(table)} kernels: nothing is wrong"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
