"""What test_distributed.py starts on two processes: each takes half of a batch, and rank 0 writes down how far the
gradients are from those of one process with the whole of it.

    torchrun --standalone --nproc-per-node 2 tests/support/distributed_worker.py OUT.json BACKEND:PREDICTOR:WAY ...

A way is one of the functions below; it returns the largest relative error.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from case import generator
from comparing import relative_error
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from under_test import ALL

from motionrnn_ext.layers import MotionGRU, RecurrentCell
from motionrnn_ext.models import MotionRNN

N_INPUT, SIZE = 2, (8, 8)
BFLOAT16 = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}

Parallel = Callable[[MotionRNN], nn.Module]


class Case:
    def __init__(self, predictor: str, layers: int, dtype: torch.dtype, folder: Path) -> None:
        self.predictor, self.hidden, self.dtype, self.folder = predictor, (8,) * layers, dtype, folder

    def model(self, seed: int = 0, **options: Any) -> MotionRNN:
        """Return the model with every parameter drawn, so that all of it takes part."""
        model = MotionRNN(self.predictor, 1, self.hidden, 2, filter_size=3, image_size=SIZE, **options)
        g = generator(seed)
        for parameter in model.parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        return model.to(self.dtype)

    def batch(self, total: int = 4) -> tuple[Tensor, Tensor]:
        """All clips, and this process's."""
        clips = torch.rand(2 * dist.get_world_size(), total, 1, *SIZE, generator=generator(1))
        return clips.to(self.dtype), clips.to(self.dtype)[dist.get_rank() :: dist.get_world_size()]

    def error(self, parallel: Parallel, *, total: int = 4, **options: Any) -> float:
        """Return the error of all gradients, in two backward passes."""
        one = self.model(**options)
        model = copy.deepcopy(one)
        wrapped, (clips, mine), worst = parallel(model), self.batch(total), 0.0
        for _ in range(2):
            for trained, read, given in ((one, one, clips), (model, wrapped, mine)):
                trained.zero_grad()
                backward(read, given)
            worst = max(worst, gradient_error(model, one))
        return worst


def backward(model: nn.Module, clips: Tensor) -> None:
    prediction = model(clips, min(N_INPUT, clips.shape[1] - 1))
    (prediction.to(clips.dtype) - clips[:, 1:]).square().mean().backward()


def gradient_error(model: nn.Module, expected: nn.Module) -> float:
    found = {name.replace("_checkpoint_wrapped_module.", ""): p.grad for name, p in model.named_parameters()}
    assert found.keys() == dict(expected.named_parameters()).keys()
    return max(error(found[name], p.grad) for name, p in expected.named_parameters())


def error(found: Tensor | None, expected: Tensor | None) -> float:
    if expected is None:
        assert found is None or not found.any()
        return 0.0
    assert found is not None
    return relative_error(found.full_tensor() if hasattr(found, "full_tensor") else found, expected)


# ---- DistributedDataParallel


def ddp(case: Case) -> float:
    return case.error(DistributedDataParallel)


def ddp_openstl(case: Case) -> float:
    return case.error(DistributedDataParallel, compat="openstl")


def ddp_compiled(case: Case) -> float:
    return case.error(lambda model: torch.compile(DistributedDataParallel(model)))


def ddp_checkpointed(case: Case) -> float:
    def parallel(model: MotionRNN) -> nn.Module:
        apply_activation_checkpointing(model, check_fn=lambda m: isinstance(m, (MotionGRU, RecurrentCell)))
        return DistributedDataParallel(model)

    return case.error(parallel)


def ddp_two_frames(case: Case) -> float:
    return case.error(DistributedDataParallel, total=2)


def ddp_two_frames_find_unused(case: Case) -> float:
    return case.error(partial(DistributedDataParallel, find_unused_parameters=True), total=2)


def ddp_two_frames_static_graph(case: Case) -> float:
    return case.error(partial(DistributedDataParallel, static_graph=True), total=2)


# ---- FSDP2


def sharded_apart(
    model: MotionRNN, of_cells: dict[str, Any] | None = None, **of_interfaces: Any
) -> MotionRNN:
    for cell in model.cells:
        fully_shard(cell, **(of_cells or {}))
    for interface in model.interfaces:
        fully_shard(interface, **of_interfaces)
    return fully_shard(model, **(of_cells or {}))


def fsdp(case: Case) -> float:
    return case.error(fully_shard)


def fsdp_apart(case: Case) -> float:
    return case.error(sharded_apart)


def fsdp_convolutions(case: Case) -> float:
    def sharded(model: MotionRNN) -> MotionRNN:
        for interface in model.interfaces:
            for module in list(interface.modules()):
                if isinstance(module, nn.Conv2d):
                    fully_shard(module)
        return fully_shard(model)

    return case.error(sharded)


def _in_bfloat16(case: Case, parallel: Parallel) -> float:
    one, model = case.model(), parallel(case.model())
    clips, mine = case.batch()
    backward(one, clips)
    backward(model, mine)
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    worst = gradient_error(model, one)
    prediction, motion = model(mine, N_INPUT, return_motion=True)
    assert prediction.dtype == torch.bfloat16
    assert {part.dtype for interface in motion for part in interface} == {torch.float32}
    return worst


def fsdp_bfloat16(case: Case) -> float:
    return _in_bfloat16(case, partial(fully_shard, mp_policy=MixedPrecisionPolicy(**BFLOAT16)))


def fsdp_apart_bfloat16(case: Case) -> float:
    policy = {"mp_policy": MixedPrecisionPolicy(**BFLOAT16)}
    return _in_bfloat16(case, partial(sharded_apart, of_cells=policy, **policy))


def fsdp_apart_bfloat16_inputs_kept(case: Case) -> float:
    cells, interfaces = (MixedPrecisionPolicy(**BFLOAT16, cast_forward_inputs=cast) for cast in (True, False))
    parallel = partial(sharded_apart, of_cells={"mp_policy": cells}, mp_policy=interfaces)
    return _in_bfloat16(case, parallel)


def fsdp_predict(case: Case) -> float:
    one, model = case.model(), sharded_apart(case.model())
    for method in ("predict", "step"):
        register_fsdp_forward_method(model, method)
    _, mine = case.batch()
    with torch.no_grad():
        pairs = [(m.predict(mine[:, :N_INPUT], 2), m.step(mine[:, 0])[0]) for m in (model, one)]
    return max(relative_error(*pair) for pair in zip(*pairs))


def fsdp_saved(case: Case) -> float:
    """Shards saved, and read by a model that is whole."""
    written = case.model()
    dcp.save(get_model_state_dict(sharded_apart(copy.deepcopy(written))), checkpoint_id=case.folder / "dcp")
    read = case.model(seed=1)
    state = read.state_dict()
    dcp.load(state, checkpoint_id=case.folder / "dcp")
    read.load_state_dict(state)
    return max(relative_error(*pair) for pair in zip(read.parameters(), written.parameters()))


def fsdp_from_meta(case: Case) -> float:
    """Made without numbers, sharded, and then given its initial values, zeros included; the whole model with them
    predicts the same."""
    options = {"filter_size": 3, "image_size": SIZE, "dtype": case.dtype}
    make = partial(MotionRNN, case.predictor, 1, case.hidden, 2, "official", **options)
    model = sharded_apart(make(device="meta")).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    one = make()
    one.load_state_dict({name: t.full_tensor() for name, t in model.state_dict().items()})
    assert {n: p.any().item() for n, p in one.named_parameters()} == {
        n: p.any().item() for n, p in make().named_parameters()
    }
    clips, _ = case.batch()
    with torch.no_grad():
        return relative_error(model(clips, N_INPUT), one(clips, N_INPUT))


def main(out: str, cases: list[str]) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=100))
    results: dict[str, float | str] = {}
    for name in cases:
        backend, predictor, way = name.split(":")
        test = next(t for t in ALL if t.name == backend)
        dtype = torch.float32 if "bfloat16" in way else test.dtypes[0]
        # One MotionGRU where an interpreter, or the C++ compiler, takes a minute for more.
        layers = 2 if test.runs_gpu_kernels or way == "ddp_compiled" else 3
        try:
            with test.chosen():
                results[name] = globals()[way](Case(predictor, layers, dtype, Path(out).parent))
        except Exception:
            results[name] = traceback.format_exc()
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(
        0
    )  # gloo's threads abort a process that ends by itself, now and then: "terminate called without ..."


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
