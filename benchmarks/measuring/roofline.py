"""Count by formula the least work of a call, and the least time that it takes at the machine's ceilings.

C channels, K = 9 taps, M = 2K motion channels, GATES C results of a predictor's convolution, e bytes per feature, 4 per
motion state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ..cases import VARIANTS, MapShape

K = 9
M = 2 * K
GATES = 7
CORNERS = 4
WITHOUT_HIGHWAY = " without highway"  # the end of the name of a case
MOTION_GRU = "MotionGRU "  # the beginning of the name of a case
MOTION_GRUS = tuple(MOTION_GRU + name for name in VARIANTS)
# Taps of a convolution of the recurrent cells, whose kernels are 5x5.
LSTM_TAPS = 25
STATE_BYTES = 4
FEATURE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Work:
    """The work of a call.

    bytes: memory traffic, each input read once and each output written once. gather: bytes that all corners of all taps
    read. scatter: bytes of their gradients, added in float32. matrix: FLOPs of sums over channels; vector: all others.
    """

    bytes: int = 0
    gather: int = 0
    scatter: int = 0
    matrix: int = 0
    vector: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, name) + getattr(other, name) for name in Work.__dataclass_fields__))


class Pointwise(NamedTuple):
    """The work of a pointwise op per element: tensors (of features, of motion state) read or written, and operations.

    A sigmoid or tanh counts as ten operations. The gradient of two addends is one tensor, written once.
    """

    of_state: bool  # whether the op has M channels instead of C
    forward: tuple[int, int]
    backward: tuple[int, int]
    operations: tuple[int, int]


POINTWISE = {
    "motion_reset": Pointwise(True, (2, 1), (3, 2), (11, 15)),
    "motion_update": Pointwise(True, (2, 4), (4, 6), (27, 32)),
    "memory_update": Pointwise(False, (8, 0), (12, 0), (37, 48)),
    "highway_output": Pointwise(False, (4, 0), (7, 0), (24, 30)),
    "gated_blend": Pointwise(False, (4, 0), (7, 0), (14, 18)),
    "st_lstm_update": Pointwise(False, (12, 0), (24, 0), (68, 94)),
    "summed_output": Pointwise(False, (6, 0), (7, 0), (25, 30)),
    "conv_lstm_update": Pointwise(False, (8, 0), (15, 0), (58, 76)),
    f"conv_lstm_update{WITHOUT_HIGHWAY}": Pointwise(False, (7, 0), (13, 0), (55, 70)),
}
OUTPUT_ALONE = Pointwise(False, (3, 0), (5, 0), (21, 25))  # highway_output without highway
OPS = (*POINTWISE, "offset_warp", "motion_warp", "motion_gates")


def work(op: str, shape: MapShape, dtype: str, direction: str) -> Work:
    """Return the work of a call; direction is "forward", "backward" or "forward+backward"."""
    return sum((_one_way(op, shape, FEATURE_BYTES[dtype], way) for way in direction.split("+")), Work())


def _one_way(op: str, shape: MapShape, e: int, direction: str) -> Work:
    forward = direction == "forward"
    if op in POINTWISE:
        return _pointwise(POINTWISE[op], shape, e, forward)
    if op == f"highway_output{WITHOUT_HIGHWAY}":
        return _pointwise(OUTPUT_ALONE, shape, e, forward)
    if "LSTM" in op:
        return _lstm(op, shape, e, forward)
    if op in MOTION_GRUS:
        return _motion_gru(VARIANTS[op.removeprefix(MOTION_GRU)], shape, e, forward)
    formulas = {"offset_warp": _offset_warp, "motion_warp": _motion_warp, "motion_gates": _motion_gates,
                "convolution": _convolution, "MotionGRUCell": _cell}  # fmt: skip
    return formulas[op](shape, e, forward)


def _pointwise(op: Pointwise, shape: MapShape, e: int, forward: bool) -> Work:
    features, states = op.forward if forward else op.backward
    elements = shape.pixels * (M if op.of_state else shape.channels)
    return Work(
        bytes=elements * (features * e + states * STATE_BYTES),
        vector=elements * op.operations[not forward],
    )


def _offset_warp(shape: MapShape, e: int, forward: bool) -> Work:
    """Return the work of the warp.

    Backward samples again, contracts grad with the weight and with the samples (two products), takes the dot product of
    each corner with the samples' gradient, and adds that gradient, weighted, at each corner.
    """
    c, pixels = shape.channels, shape.pixels
    inputs = pixels * (c * e + M * STATE_BYTES + K * e) + c * c * K * e
    samples = pixels * K * c
    gather, product = samples * CORNERS * e, 2 * samples * c
    interpolation = 2 * CORNERS * samples
    if forward:
        return Work(inputs + pixels * c * e, gather, 0, product, interpolation)
    return Work(2 * inputs + pixels * c * e, gather, samples * CORNERS * 4, 2 * product, 3 * interpolation)


def _motion_warp(shape: MapShape, e: int, forward: bool) -> Work:
    """Return the work of both ops, with the new offset in registers between them.

    Backward reads the new offset from memory once, but not the trend, and adds its gradient to the one from above.
    """
    update = _pointwise(POINTWISE["motion_update"], shape, e, forward)
    both = update + _offset_warp(shape, e, forward)
    state = shape.pixels * M * STATE_BYTES
    # Neither direction reads the new offset again, and backward does not write the warp's gradient either.
    return both + Work(bytes=-state if forward else -2 * state)


def _gates_weights(c: int, taps: int = 9) -> int:
    """Return the weights of the convolutions of [x, F] or [x, r.F] to u, r, z, and of x to the mask."""
    return taps * ((c + M) * 3 * M + c * K)


def _gates(shape: MapShape, e: int, forward: bool, taps: int = 9) -> Work:
    """The convolutions, backward twice their products, and what is computed between them; no bytes."""
    matrix = 2 * shape.pixels * _gates_weights(shape.channels, taps) * (1 if forward else 2)
    between = (_pointwise(POINTWISE[op], shape, e, forward) for op in ("motion_reset", "motion_update"))
    return Work(matrix=matrix, vector=sum(op.vector for op in between))


def _motion_gates(shape: MapShape, e: int, forward: bool) -> Work:
    """Return the work of the gates; only inputs, outputs and the logits of u, r and z pass through memory."""
    c, pixels = shape.channels, shape.pixels
    parameters = (_gates_weights(c) + 3 * M + K) * e
    maps = pixels * (c * e + 2 * M * STATE_BYTES)  # x, F, D, or their gradients
    made = pixels * (K * e + 2 * M * STATE_BYTES)  # m, F_t, D', or their gradients
    logits = pixels * 3 * M * e
    again = 0 if forward else pixels * (c * e + 2 * M * STATE_BYTES) + parameters  # x, F and F_t
    return Work(bytes=parameters + maps + made + logits + again) + _gates(shape, e, forward)


def _convolution(shape: MapShape, e: int, forward: bool) -> Work:
    """Return the work of a 5x5 convolution by Winograd's algorithm: 9 products for a result, 4 in 16 bits, where a
    direct one has 25; backward twice as many."""
    c, pixels = shape.channels, shape.pixels
    maps, weights = pixels * (1 + GATES) * c * e, GATES * c * c * 25 * e
    matrix = 2 * pixels * GATES * c * c * (4 if e == 2 else 9)
    if forward:
        return Work(bytes=maps + weights, matrix=matrix)
    return Work(bytes=maps + 2 * weights + pixels * c * e, matrix=2 * matrix)


def _cell(shape: MapShape, e: int, forward: bool) -> Work:
    """Return the work of the cell; only inputs and outputs pass through memory."""
    c, pixels = shape.channels, shape.pixels
    step = _gates(shape, e, forward) + _offset_warp(shape, e, forward)
    parameters = (_gates_weights(c) + 3 * M + K + c * c * K) * e
    outside = pixels * (2 * c * e + 4 * M * STATE_BYTES) + parameters  # x, out, F and D in and out
    if not forward:  # gradients of the same, and x and F again
        outside += pixels * (c * e + M * STATE_BYTES) + parameters
    return Work(outside, step.gather, step.scatter, step.matrix, step.vector)


def _motion_gru(sizes: dict[str, Any], shape: MapShape, e: int, forward: bool) -> Work:
    """Return the work of a MotionGRU with kernels of these sizes; only inputs and outputs pass through memory."""
    c, pixels, maps, of_maps = shape.channels, shape.pixels, 4 * shape.channels, 4 * shape.pixels
    encoder, gate, blend = (
        sizes.get(f"{name}_kernel_size", default) ** 2
        for name, default in (("encoder", 3), ("gate", 1), ("blend", 1))
    )
    convolved = maps * c * (encoder + 16)  # by pixel of the half map; the decoder is 4x4
    blended = 2 * maps**2 * blend
    step = _gates(shape, e, forward, gate) + _offset_warp(shape, e, forward)
    step += Work(matrix=2 * (pixels * convolved + of_maps * blended) * (1 if forward else 2))
    vector = step.vector + of_maps * maps * POINTWISE["gated_blend"].operations[not forward]
    parameters = (convolved + blended + _gates_weights(c, gate) + c * c * K) * e
    outside = 2 * of_maps * maps * e + pixels * 4 * M * STATE_BYTES + parameters  # H, X, F and D in and out
    if not forward:  # gradients of the same, and H and F again
        outside += of_maps * maps * e + pixels * M * STATE_BYTES + parameters
    return Work(outside, step.gather, step.scatter, step.matrix, vector)


def _lstm(op: str, shape: MapShape, e: int, forward: bool) -> Work:
    """Return the work of a step of ConvLSTM or ST-LSTM; only inputs and outputs pass through memory."""
    c, memories = shape.channels, 2 if op.startswith("SpatioTemporal") else 1
    has_highway = not op.endswith(WITHOUT_HIGHWAY)
    weights = c * c * (LSTM_TAPS * 8 if memories == 1 else LSTM_TAPS * 16 + 2)
    inputs, outputs = (
        2 + memories + has_highway,
        1 + memories,
    )  # maps: X, H, the memories, Y; H' and the memories
    pointwise = [POINTWISE["memory_update"]] * memories
    pointwise.append(POINTWISE["highway_output"] if has_highway else OUTPUT_ALONE)
    vector = sum(_pointwise(p, shape, e, forward).vector for p in pointwise)
    read_and_written = e * (shape.pixels * c * (inputs + outputs) + weights)
    if forward:
        return Work(read_and_written, matrix=2 * shape.pixels * weights, vector=vector)
    # The gradients of the same, and the inputs again.
    return Work(
        read_and_written + e * (shape.pixels * c * inputs + weights),
        matrix=4 * shape.pixels * weights,
        vector=vector,
    )


def lane_bytes(shape: MapShape, dtype: str) -> int:
    """Return the bytes that one of a pixel's four lanes loads at a time: a quarter of its channels, 8 or 16 bytes."""
    return 8 if shape.channels * FEATURE_BYTES[dtype] // 4 <= 8 else 16


def floors(counted: Work, ceilings: dict[str, Any], dtype: str, lane: int) -> dict[str, float]:
    """Return the microseconds of each term at the card's measured ceilings; `scatter` is no part of the roofline.

    Sums over channels run on the tensor cores: half precision at their rate, float32 at the rate of three tf32
    products, or with FFMA if that is faster.
    """
    fma = ceilings["ffma_flops"]
    matrix = max(fma, ceilings["mma_tf32_flops"] / 3) if dtype == "float32" else ceilings["mma_bf16_flops"]
    return {
        "memory": 1e6 * counted.bytes / ceilings["copy_bytes_per_s"],
        "gather": 1e6 * counted.gather / ceilings[f"gather_l1_{lane}_bytes_per_s"],
        "matrix": 1e6 * counted.matrix / matrix,
        "vector": 1e6 * counted.vector / fma,
        "scatter": 1e6 * counted.scatter / ceilings["red_float4_bytes_per_s"],
    }


def cpu_floors(counted: Work, ceilings: dict[str, Any]) -> dict[str, float]:
    """Return the microseconds of a processor's memory and matrix terms, in float32 whatever the dtype.

    The memory term has the rate of a copy as large as the call, so that small calls are compared with cache speed.
    """
    sizes = sorted(ceilings["copies"], key=lambda copy: copy["bytes"])
    copy = next((c for c in sizes if c["bytes"] >= counted.bytes), sizes[-1])
    return {
        "memory": 1e6 * counted.bytes / copy["bytes_per_s"],
        "matrix": 1e6 * counted.matrix / matrix_rate(ceilings, "float32"),
    }


def matrix_rate(ceilings: dict[str, Any], dtype: str) -> float:
    """Return the highest FLOP/s of matrix products: a library's on the CPU, the tensor cores' on a GPU."""
    if "matmul_flops" in ceilings:
        return max(ceilings["matmul_flops"], ceilings["convolution_flops"])
    return ceilings["mma_tf32_flops" if dtype == "float32" else "mma_bf16_flops"]


def share(floors_us: dict[str, float], microseconds: float) -> tuple[float, str]:
    """Return the roofline's share of a time, and the term that bounds it, such as memory or matrix."""
    bound = max((name for name in floors_us if name != "scatter"), key=lambda name: floors_us[name])
    return floors_us[bound] / microseconds, bound
