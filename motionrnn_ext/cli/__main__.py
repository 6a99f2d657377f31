"""Run the program `motionrnn`, where it is not on the path: `python -m motionrnn_ext.cli`."""

from __future__ import annotations

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
