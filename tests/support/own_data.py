"""A data set of a user's own, and what a reader's refusal of a file must say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layouts import noise
from torch import Tensor

from motionrnn_ext.data import DATASETS, DataSet


def refusal(make: Callable[[], Any], *words: object) -> None:
    """The one line of the ValueError that it must raise has all these words."""
    with pytest.raises(ValueError) as error:
        make()
    text = str(error.value)
    assert "\n" not in text
    assert "allow_pickle" not in text and "trust" not in text, text  # no library's advice to read it unsafely
    for word in words:
        assert str(word) in text, text


class Own:
    """Eight clips of a user's data set; `change` makes an item of noise in bytes."""

    def __init__(
        self, change: Callable[[Tensor, int], Any], n_frames: int, image_size: tuple[int, int]
    ) -> None:
        self.change, self.shape = change, (n_frames, 1, *image_size)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return self.change(torch.from_numpy(noise(*self.shape, seed=index)), index)


def own(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor, int], Any]) -> None:
    def opened(split: str, root: str, **options: Any) -> Own:
        return Own(change, **options)

    entry = DataSet("mine", opened, "files", image_size=(16, 16), n_input=3, n_output=3)
    monkeypatch.setitem(DATASETS, "mine", entry)
