"""Run the program `motionrnn` as `python -m motionrnn_ext`, which also works if `motionrnn` is not on the path."""

import sys

from .cli import main

# A data worker imports this file again, under another name.
if __name__ == "__main__":
    sys.exit(main())
