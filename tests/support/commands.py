"""The program `motionrnn` in this process."""

from __future__ import annotations

import pytest

from motionrnn_ext import cli

# The options of a training of two steps on 16x16 frames.
SMALL = [
    *("--hidden", "4", "--patch-size", "4", "--filter-size", "3", "--image-size", "16", "16"),
    *("--n-input", "4", "--n-output", "4", "--batch-size", "2", "--steps", "2", "--val-every", "2"),
    *("--val-clips", "2", "--train-clips", "3", "--log-every", "1", "--accelerator", "cpu", "--no-progress"),
]


def run(*command: object) -> int:
    """Return the exit status of a command, given word by word."""
    return cli.main([str(word) for word in command])


def fails(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    """Return the one line on stderr of a command that must fail."""
    capsys.readouterr()
    assert run(*command) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"motionrnn {command[0]}: error: ")
    return line
