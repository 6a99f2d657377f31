"""Weights in several files are read by their index; one of the files alone, or a folder, says what to name instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import equal, model
from torch import Tensor
from torch.distributed.checkpoint import save as save_distributed

from motionrnn_ext.models import load_checkpoint

SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]


def write(folder: Path, state: dict[str, Tensor], **changes: Any) -> Path:
    """Write every second tensor to the second file, and return the path of the index."""
    names = list(state)
    for i, shard in enumerate(SHARDS):
        torch.save({name: state[name] for name in names[i::2]}, folder / shard)
    weight_map = {name: SHARDS[i % 2] for i, name in enumerate(names)} | changes
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_shards_are_one_model(tmp_path: Path) -> None:
    made = model("predrnn")
    index = write(tmp_path, dict(made.state_dict()))
    with pytest.warns(UserWarning, match="assumed in_channels=1, patch_size=2"):
        assert equal(load_checkpoint(index), made)


def test_one_shard_and_the_folder_name_the_index(tmp_path: Path) -> None:
    index = write(tmp_path, dict(model().state_dict()))
    for shard in SHARDS:
        with pytest.raises(
            ValueError, match=f"is one of 2 shards; it should be their index, '{index.name}'$"
        ):
            load_checkpoint(tmp_path / shard)
    with pytest.raises(IsADirectoryError, match=f"it should be a file, such as its {index.name}$"):
        load_checkpoint(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_names_what_makes_a_file_of_it(tmp_path: Path) -> None:
    save_distributed(model().state_dict(), checkpoint_id=tmp_path / "distributed")
    with pytest.raises(IsADirectoryError, match="it should be a file, which dcp_to_torch_save of torch"):
        load_checkpoint(tmp_path / "distributed")


def test_a_broken_index_is_one_line(tmp_path: Path) -> None:
    state = dict(model().state_dict())
    index = write(tmp_path, state, **{"cells.7.conv_x.0.weight": SHARDS[0]})
    with pytest.raises(ValueError, match=r"lists tensors that are not in its shards: cells\.7"):
        load_checkpoint(index)
    write(tmp_path, state, **{"conv_last.weight": f"../{SHARDS[0]}"})
    with pytest.raises(ValueError, match=r"names the shard '\.\./.*'; it should be a file beside it"):
        load_checkpoint(index)
    write(tmp_path, state, **{"conv_last.weight": "gone.bin"})
    with pytest.raises(FileNotFoundError, match=r"gone\.bin"):
        load_checkpoint(index)
    write(tmp_path, state)
    (tmp_path / SHARDS[1]).write_bytes((tmp_path / SHARDS[1]).read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"^shard '{SHARDS[1]}' of checkpoint .* is truncated"):
        load_checkpoint(index)
    for text in ("", "[]", "{}", '{"weight_map": 3}'):
        index.write_text(text)
        with pytest.raises(ValueError, match="is no index of shards: it should be JSON with a weight_map"):
            load_checkpoint(index)
