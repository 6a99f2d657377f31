"""Random cases of every op and module on every backend, against the reference in float64."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import FUZZED_OPS
from features import feature
from fuzzing import Drawn, Layout, drawn
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy
from judging import check
from module_fuzzing import MODULES, DrawnModule, check_module, drawn_module
from under_test import ALL, KERNELS, UnderTest, on

# MOTIONRNN_EXT_FUZZ=5000 runs so many new cases per test; otherwise each test has its own, the same in every run.
NEW = os.environ.get("MOTIONRNN_EXT_FUZZ")
OF_AN_OP, OF_A_MODULE = {"few": 40, "many": 250}, {"few": 10, "many": 62}
OF_THE_SLOW = 6  # backends
ran = Counter[str]()  # cases, by backend
compared = Counter[str]()  # modules whose gradients were compared, too


def fuzz(
    on: UnderTest,
    part: str,
    cases: dict[str, int],
    strategy: SearchStrategy[Any],
    check: Callable[[Any], None],
) -> None:
    wanted = int(NEW) if NEW else OF_THE_SLOW if on.is_slow else cases[part]
    passed = 0

    @settings(max_examples=wanted, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def every(case: Any) -> None:
        nonlocal passed
        check(case)
        passed += 1

    if not NEW:
        every = seed(list(cases).index(part))(every)
    every()
    assert passed >= wanted, f"{passed} cases instead of {wanted}"
    ran[on.name] += passed


def fuzz_op(on: UnderTest, op: str, part: str) -> None:
    fuzz(on, part, OF_AN_OP, drawn(op, on.dtypes), lambda case: check(on, case))


def fuzz_module(on: UnderTest, kind: str, part: str) -> None:
    def check(case: DrawnModule) -> None:
        compared[on.name] += check_module(on, case)

    fuzz(on, part, OF_A_MODULE, drawn_module(kind, on.dtypes), check)


@feature("fuzz")
@on(ALL)
@pytest.mark.parametrize("op", FUZZED_OPS)
def test_ops(on: UnderTest, op: str):
    fuzz_op(on, op, "few")


def motion_warp_case(shapes: dict[str, tuple[int, ...]], **changes: Any) -> Drawn:
    plain = {name: Layout((0, 1, 2, 3)) for name in shapes}
    case = Drawn(
        op="motion_warp",
        shapes=shapes,
        parameters={},
        dtype=torch.float32,
        float32_memory=False,
        layouts=plain,
        same=False,
        logits=1.0,
        features=1.0,
        offsets=1.5,
        quarters=False,
        special=7,
        wanted=tuple(shapes),
        used=(0, 1, 2),
        grads=(Layout((0, 1, 2, 3)),) * 3,
        deterministic=False,
        seed=0,
    )
    return replace(case, **changes)


@on(ALL)
@pytest.mark.parametrize(
    "channels, out_channels, k, size, changes",
    [
        (33, 1, 3, (3, 3), {"logits": 200.0, "offsets": 6.0, "seed": 1592}),
        (2, 2, 1, (1, 2), {"dtype": torch.float16, "same": True}),
    ],
    ids=["a tap that is off the map but for 1e-9", "one tensor, of which a gradient is nan"],
)
def test_rare_cases(
    on: UnderTest, channels: int, out_channels: int, k: int, size: tuple[int, int], changes: dict[str, Any]
):
    """Found among some 20,000 drawn ones, and right by rules of judging.py."""
    state = (1, 2 * k * k, *size)
    names = ("update_logits", "candidate_logits", "offset", "trend")
    shapes = {"x": (1, channels, *size), **dict.fromkeys(names, state), "mask_logits": (1, k * k, *size)}
    check(on, motion_warp_case({**shapes, "weight": (out_channels, channels, k, k)}, **changes))


@feature("fuzz")
@on(ALL)
@pytest.mark.parametrize("kind", MODULES)
def test_modules(on: UnderTest, kind: str):
    fuzz_module(on, kind, "few")


@pytest.mark.slow
@feature("fuzz")
@on(KERNELS)
@pytest.mark.parametrize("op", FUZZED_OPS)
def test_many_of_an_op(on: UnderTest, op: str):
    fuzz_op(on, op, "many")


@pytest.mark.slow
@feature("fuzz")
@on(KERNELS)
@pytest.mark.parametrize("kind", MODULES)
def test_many_of_a_module(on: UnderTest, kind: str):
    fuzz_module(on, kind, "many")


def test_there_are_thousands(record_property: Callable[[str, object], None]):
    """Every test counts that it has run its number; these are the numbers."""
    on_each_backend = sum(
        len(FUZZED_OPS) * OF_AN_OP[part] + len(MODULES) * OF_A_MODULE[part] for part in OF_AN_OP
    )
    assert on_each_backend >= 2000
    modules = len(MODULES) * OF_A_MODULE["few"]
    for name, n in compared.items():  # gradients are left out near integers only
        assert n >= 0.5 * modules * (ran[name] > 0), f"{n} of {name}'s modules"
    record_property(
        "figure", f"random cases that ran: {dict(ran)}; with gradients of modules: {dict(compared)}"
    )
