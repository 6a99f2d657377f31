"""Run the program `motionrnn` as `python -m motionrnn_ext.cli`."""

from __future__ import annotations

import sys

from . import main

# A data worker imports this file again, under another name.
if __name__ == "__main__":
    sys.exit(main())
