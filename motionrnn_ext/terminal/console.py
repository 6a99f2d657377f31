"""Where tables and marked text go: what comes from the user or a file is printed as it is, never parsed as markup."""

from __future__ import annotations

import sys

import rich.console


class Console(rich.console.Console):
    """On the standard output, without markup, emoji codes or highlighting; styles are given as such."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__(width=width, markup=False, emoji=False, highlight=False)


def wide_console() -> Console:
    """For tables; never narrower than one: a line that the terminal wraps is better than numbers cut short."""
    return Console(width=max(Console().width, 240))


def is_animated() -> bool:
    """Whether a progress bar can move here: on a terminal, or in a notebook."""
    console = Console()
    return console.is_jupyter or (sys.stdout.isatty() and not console.is_dumb_terminal)
