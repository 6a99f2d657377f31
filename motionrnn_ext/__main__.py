"""`python -m motionrnn_ext` is the program `motionrnn`, where that is not on the path."""

import sys

from .cli import main

if __name__ == "__main__":  # data workers import this file again
    sys.exit(main())
