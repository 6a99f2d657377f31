"""The released MotionRNN program and OpenSTL, from checkouts that MOTIONRNN_EXT_OFFICIAL and MOTIONRNN_EXT_OPENSTL
name; tests skip without them."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from types import ModuleType

import pytest

CHECKOUT = os.environ.get("MOTIONRNN_EXT_OFFICIAL")
needs_checkout = pytest.mark.skipif(
    not CHECKOUT, reason="MOTIONRNN_EXT_OFFICIAL is unset: no checkout of thuml/MotionRNN to compare with"
)

OPENSTL = os.environ.get("MOTIONRNN_EXT_OPENSTL")
needs_openstl = pytest.mark.skipif(
    not OPENSTL, reason="MOTIONRNN_EXT_OPENSTL is unset: no checkout of chengtan9907/OpenSTL to compare with"
)


def official_module(name: str) -> ModuleType:
    """A module of the program, such as "core.layers.MotionGRU"."""
    assert CHECKOUT is not None
    if CHECKOUT not in sys.path:
        sys.path.append(CHECKOUT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
