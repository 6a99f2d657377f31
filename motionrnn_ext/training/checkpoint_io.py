"""Write and read the checkpoints of a run for Lightning."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from .runs import read_checkpoint


class WholeCheckpointIO(TorchCheckpointIO):
    """Checkpoint files that are either whole or absent.

    A checkpoint is written beside its final path and then renamed. Lightning itself writes to the system's temporary
    folder, from where a file is copied if that is another disk. Reading a checkpoint runs no code from it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        part = f"{path}.part"
        try:
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError if the disk is full
            with suppress(OSError):
                os.remove(part)
            reason = (isinstance(error, OSError) and error.strerror) or str(error).splitlines()[0]
            raise OSError(f"{path} cannot be written: {reason}; earlier ones are kept") from error

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        content = read_checkpoint(Path(path))
        for state in content.get("callbacks", {}).values():
            _relocate(state, os.path.dirname(os.path.realpath(path)))
            _forget_what_is_gone(state)
        # The last batch of a finished run is no longer the last if the run is resumed with more steps.
        loop = content.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
        loop["is_last_batch"] = False
        return content


def _relocate(state: dict[str, Any], folder: str) -> None:
    """Change the paths in a ModelCheckpoint's state to `folder`: Lightning discards the best checkpoint and its score
    if the folder was renamed or moved."""
    before = os.fspath(state.get("dirpath") or "")
    if not before or before == folder:
        return

    def moved(path: str) -> str:
        return os.path.join(folder, os.path.basename(path)) if path.startswith(before) else path

    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = moved(state[name])
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    state["dirpath"] = folder


def _forget_what_is_gone(state: dict[str, Any]) -> None:
    """Remove a best checkpoint whose file is gone from a ModelCheckpoint's state, so that there will be a new one."""
    if state.get("monitor") is None or os.path.exists(state.get("best_model_path", "")):
        return
    state |= {"best_model_path": "", "best_model_score": None, "best_k_models": {}, "kth_best_model_path": ""}
    state["kth_value"] = torch.tensor(math.inf)
