"""Many threads at once: each has its own choice of a backend, and one result."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import ALL_OPS, small_case
from features import feature
from under_test import ALL, CPU, CUDA, NOT_TESTED, REFERENCE, UnderTest, on

import motionrnn_ext
from motionrnn_ext import MotionGRUCell, MotionRNN, backends, ops
from motionrnn_ext.backends import native, reference

N_THREADS = 16
# The PTX interpreter and Triton's interpreter run one kernel at a time: not from several threads.
THREADED = [t for t in ALL if t in (REFERENCE, CPU, CUDA)]
NEEDS_CPU = pytest.mark.skipif(CPU not in ALL, reason=f"cpu is not tested: {NOT_TESTED.get('cpu')}")


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    """Python goes from thread to thread 1000 times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def at_once(*work: Callable[[], Any]) -> list[Any]:
    """The results of functions that threads of their own start together."""
    start = threading.Barrier(len(work))

    def run(function: Callable[[], Any]) -> Any:
        start.wait(60)
        return function()

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(run, work))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, str]]:
    """The threads that ops ran in, and on which backend."""
    seen: set[tuple[int, str]] = set()

    def spied(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def spy(*arguments: Any) -> Any:
            seen.add((threading.get_ident(), name))
            return function(*arguments)

        return spy

    monkeypatch.setattr(native, "call", spied(native.call, "cpu"))
    monkeypatch.setattr(reference, "gated_blend", spied(reference.gated_blend, "reference"))
    return seen


def blend() -> torch.Tensor:
    return ops.gated_blend(*(torch.ones(1, 2) for _ in range(3)))


@NEEDS_CPU
@feature("threads", on=["reference", "cpu"])
def test_every_thread_runs_on_its_own_choice(ran: set[tuple[int, str]]):
    """Nested, left by an exception, and while another thread keeps changing the choice of those that have none."""

    inside, nested = threading.Barrier(N_THREADS), list[bool]()

    def chosen(name: str, seed: int) -> int:
        rng, other = random.Random(seed), {"cpu": "reference", "reference": "cpu"}[name]
        with motionrnn_ext.backend(name):
            for _ in range(20):
                inside.wait(60)  # all threads are in their blocks
                blend()
                if rng.random() < 0.5:
                    with pytest.raises(ZeroDivisionError), motionrnn_ext.backend("auto"):
                        with motionrnn_ext.backend(other):
                            nested.append(backends.current_backend() == other)
                        nested.append(backends.current_backend() == "auto")
                        raise ZeroDivisionError
                nested.append(backends.current_backend() == name)
        return threading.get_ident()

    def changing() -> None:
        for name in ("cpu", "reference", "auto") * 20:
            motionrnn_ext.set_backend(name)

    try:
        names = [("cpu", "reference")[i % 2] for i in range(N_THREADS)]
        work = [lambda i=i, name=name: chosen(name, i) for i, name in enumerate(names)]
        *threads, _ = at_once(*work, changing)
    finally:
        motionrnn_ext.set_backend("auto")
    assert ran == set(zip(threads, names)) and len(ran) == N_THREADS and all(nested)


@NEEDS_CPU
@feature("threads", on=["reference", "cpu"])
def test_a_thread_without_a_choice_takes_the_one_of_all():
    """A choice of a pool's thread ends with its block; `set_backend` reaches threads that run already."""
    reached, changed = threading.Event(), threading.Event()

    def follow() -> list[str]:
        seen = [backends.current_backend()]
        with motionrnn_ext.backend("cpu"):
            reached.set()
            assert changed.wait(60)
            seen.append(backends.current_backend())
        return [*seen, backends.current_backend()]

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(follow)
        assert reached.wait(60)
        motionrnn_ext.set_backend("reference")
        try:
            changed.set()
            assert found.result(60) == ["auto", "cpu", "reference"]
        finally:
            motionrnn_ext.set_backend("auto")
        assert pool.submit(backends.current_backend).result(60) == "auto"


@NEEDS_CPU
@feature("threads", on=["reference", "cpu"])
@pytest.mark.parametrize("op", [op for op in ALL_OPS if op != "motion_warp"])
def test_backward_in_another_thread_runs_on_the_backend_of_its_forward(op: str):
    """The results are compared to the bit: both backends round differently."""
    inputs = small_case(op).inputs(torch.float32)
    leaves = [t for t in inputs.values() if t is not None]

    def forward(name: str) -> tuple[torch.Tensor, ...]:
        with motionrnn_ext.backend(name):
            return small_case(op).run(inputs)

    def gradients(outputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        return list(torch.autograd.grad([(o * o).sum() for o in outputs], leaves))

    def elsewhere(outputs: tuple[torch.Tensor, ...], name: str) -> list[torch.Tensor]:
        with motionrnn_ext.backend(name):
            return gradients(outputs)

    names = ["cpu", "reference"]
    expected = {name: gradients(forward(name)) for name in names}
    nodes = {name: {node.name() for node in nodes_of(forward(name))} for name in names}
    assert not any("motionrnn_ext" in node for node in nodes["reference"])
    assert any("motionrnn_ext" in node for node in nodes["cpu"])
    outputs = [(name, forward(name)) for name in names * 4]
    other = dict(zip(names, reversed(names)))
    found = at_once(*[lambda o=o, name=name: elsewhere(o, other[name]) for name, o in outputs])
    for (name, _), grads in zip(outputs, found):
        assert all(g.equal(e) for g, e in zip(grads, expected[name]))


def nodes_of(outputs: tuple[torch.Tensor, ...]) -> Iterator[Any]:
    waiting = [o.grad_fn for o in outputs]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [n for n, _ in node.next_functions if n is not None]


@feature("threads")
@on(THREADED)
@pytest.mark.parametrize("op", ALL_OPS)
def test_an_op_from_many_threads(on: UnderTest, op: str):
    """Forward and backward, each thread on inputs of its own: what one thread finds."""
    case, dtype = small_case(op), torch.float32

    def step(factor: float) -> list[torch.Tensor]:
        inputs = {n: (t.detach() * factor).requires_grad_() for n, t in case.inputs(dtype, on.device).items()}
        with motionrnn_ext.backend(on.name):
            outputs = case.run(inputs)
            return [*outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), list(inputs.values()))]

    factors = [1 + i / 8 for i in range(N_THREADS)]
    expected = [step(factor) for factor in factors]
    found = at_once(*[lambda factor=factor: [step(factor) for _ in range(10)] for factor in factors])
    for repeats, e in zip(found, expected):
        for results in repeats:
            assert all(r.equal(t) for r, t in zip(results, e))


@feature("threads")
@on(THREADED)
def test_one_model_in_many_threads(on: UnderTest):
    """Threads that share its parameters, as in a server or with data parallelism in one process."""
    torch.manual_seed(0)
    cell = MotionGRUCell(8, zero_init=False).to(on.device)
    model = MotionRNN("predrnn", 1, (8, 8), 2, filter_size=3).to(on.device)

    def step(seed: int) -> list[torch.Tensor]:
        g = torch.Generator().manual_seed(seed)
        x, motion = (torch.randn(2, n, 6, 5, generator=g).to(on.device) for n in (8, 18))
        frames = torch.rand(1, 4, 1, 8, 12, generator=g).to(on.device)
        with motionrnn_ext.backend(on.name):
            outputs = [*cell(x, motion, motion), model(frames, 2)]
            leaves = [*cell.parameters(), *model.parameters()]
            return [*outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), leaves)]

    expected = [step(seed) for seed in range(8)]
    found = at_once(*[lambda seed=seed: step(seed) for seed in range(8)])
    for results, e in zip(found, expected):
        for r, t in zip(results, e):
            torch.testing.assert_close(r, t, rtol=1e-5, atol=1e-6)  # convolutions share threads differently


FIRST_USE = """
import sys, threading
sys.setswitchinterval(5e-6)
import torch
if {import_first}:
    import motionrnn_ext
start, found, failed = threading.Barrier(16), [], []

def use():
    try:
        start.wait(60)
        import motionrnn_ext
        from motionrnn_ext import ops
        with motionrnn_ext.backend({backend!r}):
            inputs = [torch.full((2, 3, 4, 5), 0.5 + i, requires_grad=True) for i in range(3)]
            out = ops.gated_blend(*inputs)
            out.sum().backward()
        found.append((out.sum().item(), *(t.grad.sum().item() for t in inputs)))
    except BaseException as error:
        failed.append(repr(error))

threads = [threading.Thread(target=use) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed, failed
assert len(found) == 16 and len(set(found)) == 1, found
print("fine")
"""


@feature("threads")
@pytest.mark.parametrize("backend", ["cpu" if CPU in ALL else "reference"])
@pytest.mark.parametrize("import_first", [True, False], ids=["first_op", "import"])
def test_first_use_from_many_threads(backend: str, import_first: bool):
    """A fresh process loads the library, registers the ops and chooses the instruction set."""
    code = FIRST_USE.format(backend=backend, import_first=import_first)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "fine", done.stdout + done.stderr
