"""The line of the user's program that called into this package, for warnings."""

from __future__ import annotations

import sys

from .name import PACKAGE

# Packages between the user's line and a warning: loaders, metrics and models are called through these.
_LIBRARIES = (PACKAGE, "torch", "torchmetrics", "lightning")


def stacklevel_of_user() -> int:
    """Return the `stacklevel` with which a warning of the calling function names the user's line.

    It is that of the first caller outside of `_LIBRARIES`, or of the outermost one if there is none, as under the
    command line. Python 3.12 has `skip_file_prefixes` for this.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    return level
