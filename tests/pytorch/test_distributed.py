"""Do several processes, each with its share of a batch, have the gradients of one with all of it?

Every case is run by distributed_worker.py on two processes, all of them at one start; the tests look at what came out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from comparing import TOLERANCE
from equations import drawn, randomised
from features import feature
from golden import relative_error
from repository import TESTS
from under_test import ALL, UnderTest, on

from motionrnn_ext import MotionRNN
from motionrnn_ext.layers.cells import CELLS

if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

WORKER = TESTS / "support" / "distributed_worker.py"
HERE = [test for test in ALL if test.device == "cpu"]
WAYS = ("ddp", "fsdp", "fsdp_apart")
ONCE = {  # on the CPU's kernels
    "ddp_checkpointed": "predrnn",
    "ddp_openstl": "e3d_lstm",
    "ddp_two_frames": "mim",
    "ddp_two_frames_find_unused": "mim",
    "ddp_two_frames_static_graph": "mim",
    "fsdp_convolutions": "predrnn",
    "fsdp_bfloat16": "predrnn",
    "fsdp_apart_bfloat16": "predrnn",
    "fsdp_apart_bfloat16_inputs_kept": "predrnn",
    "fsdp_predict": "predrnn",
    "fsdp_saved": "predrnn",
    "fsdp_from_meta": "mim",
}


def predictors(test: UnderTest) -> list[str]:
    return ["convlstm"] if test.runs_gpu_kernels else list(CELLS)  # emulated or interpreted here, and slow


def two_processes(folder: Path, cases: list[str]) -> dict[str, float | str]:
    """Case -> its error, or the traceback of rank 0."""
    out = folder / "results.json"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*start, str(WORKER), str(out), *cases],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, float | str]:
    """Return the results of all that the selected tests look at."""
    items = [item for item in request.session.items if "results" in item.fixturenames]
    selected = {item.callspec.params.get("on") if hasattr(item, "callspec") else None for item in items}
    cases = [
        f"{test}:{name}:{way}"
        for test in HERE
        if test in selected
        for name in predictors(test)
        for way in WAYS
    ]
    if None in selected:
        cases += [f"cpu:{name}:{way}" for way, name in ONCE.items()]
    return two_processes(tmp_path_factory.mktemp("distributed"), cases)


def assert_error(results: dict[str, float | str], case: str, tolerance: float) -> None:
    error = results[case]
    assert isinstance(error, float), error
    assert error <= tolerance, case


def check(results: dict[str, float | str], test: UnderTest, way: str) -> None:
    for name in predictors(test):
        assert_error(
            results, f"{test}:{name}:{way}", TOLERANCE[test.dtypes[0]]
        )  # 2e-15 is measured in float64


@feature("ddp")
@on(HERE)
def test_ddp_has_the_gradients_of_one_process(on: UnderTest, results: dict[str, float | str]) -> None:
    check(results, on, "ddp")


@feature("fsdp")
@on(HERE)
@pytest.mark.parametrize("way", ["fsdp", "fsdp_apart"])
def test_fsdp_has_the_gradients_of_one_process(
    way: str, on: UnderTest, results: dict[str, float | str]
) -> None:
    """The whole model sharded as one, and every cell and MotionGRU by itself."""
    check(results, on, way)


@feature("fsdp", on=["cpu"])
def test_convolutions_of_the_motion_grus_may_be_sharded(results: dict[str, float | str]) -> None:
    """They are called, as their weights are whole within their own forward alone."""
    assert_error(results, "cpu:predrnn:fsdp_convolutions", TOLERANCE[torch.float64])


@feature("ddp", on=["cpu"])
@pytest.mark.parametrize("way", ["ddp_checkpointed", "ddp_openstl"])
def test_ddp_of_a_checkpointed_model_and_of_openstl_cells(way: str, results: dict[str, float | str]) -> None:
    assert_error(results, f"cpu:{ONCE[way]}:{way}", TOLERANCE[torch.float64])


@feature("ddp", on=["cpu"])
def test_mim_has_parameters_that_two_frames_do_not_reach(results: dict[str, float | str]) -> None:
    """No gradient where no change can be seen yet: DDP says so in the second step, unless it is told."""
    message = results["cpu:mim:ddp_two_frames"]
    assert isinstance(message, str)
    assert "parameters that were not used" in message and "find_unused_parameters=True" in message
    for how in ("find_unused", "static_graph"):
        assert_error(results, f"cpu:mim:ddp_two_frames_{how}", TOLERANCE[torch.float64])


@feature("fsdp", on=["cpu"])
@pytest.mark.parametrize("way", ["fsdp_bfloat16", "fsdp_apart_bfloat16_inputs_kept"])
def test_motion_stays_float32_where_fsdp_computes_in_bfloat16(
    way: str, results: dict[str, float | str]
) -> None:
    """Gradients after four steps through three layers are within 0.05 of float32's; 0.02 is measured."""
    assert_error(results, f"cpu:{ONCE[way]}:{way}", 0.05)


def test_a_policy_that_would_round_the_motion_is_refused(results: dict[str, float | str]) -> None:
    message = results["cpu:predrnn:fsdp_apart_bfloat16"]
    assert isinstance(message, str)
    assert "offset has dtype torch.bfloat16 by FSDP's mixed precision" in message


@feature("fsdp", on=["cpu"])
@pytest.mark.parametrize("way", ["fsdp_predict", "fsdp_saved", "fsdp_from_meta"])
def test_a_sharded_model_predicts_is_saved_and_may_begin_without_numbers(
    way: str, results: dict[str, float | str]
) -> None:
    assert_error(results, f"cpu:{ONCE[way]}:{way}", TOLERANCE[torch.float64])


@pytest.mark.nightly
@feature("ddp", on=["cpu"])
def test_compiled_ddp(tmp_path: Path) -> None:
    case = "cpu:convlstm:ddp_compiled"
    assert_error(two_processes(tmp_path, [case]), case, TOLERANCE[torch.float64])


@pytest.mark.parametrize("variant", ["paper", "official"])
@pytest.mark.parametrize("predictor", CELLS)
def test_a_replica_of_data_parallel_is_the_model(
    predictor: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica has no parameters: its weights are attributes. PyTorch copies them between GPUs only."""
    module = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(module, "_get_device_index", lambda device, _: device)
    monkeypatch.setattr(
        module,
        "_broadcast_coalesced_reshape",
        lambda tensors, devices, detach: [[t.clone() for t in tensors]],
    )
    alpha = torch.nn.Parameter(torch.tensor(0.3))
    made = MotionRNN(predictor, 1, (4, 4), 2, variant, filter_size=3, image_size=(8, 8), alpha=alpha)
    made = randomised(made)
    (replica,) = torch.nn.parallel.replicate(made, [0])
    assert not list(replica.parameters())
    frames, results = drawn(2, 4, 1, 8, 8).detach(), []
    for one in (made, replica):
        torch.manual_seed(0)  # of the official program's initial state
        predicted = one(frames, 2)
        results.append(
            [predicted.detach(), *torch.autograd.grad(predicted.square().sum(), made.parameters())]
        )
    for found, expected in zip(*reversed(results)):
        assert relative_error(found, expected) <= TOLERANCE[torch.float64]
