"""The console for tables and styled text. Text from the user or a file is printed as it is, never parsed as markup."""

from __future__ import annotations

import sys

import rich.console


class Console(rich.console.Console):
    """A console on the standard output without markup, emoji codes or highlighting. Styles are passed as arguments."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__(width=width, markup=False, emoji=False, highlight=False)


def wide_console() -> Console:
    """Return a console for tables, at least 240 columns wide: a wrapped line is better than a truncated number."""
    return Console(width=max(Console().width, 240))


def is_animated() -> bool:
    """Return whether a progress bar can move here: on a terminal or in a notebook."""
    console = Console()
    return console.is_jupyter or (sys.stdout.isatty() and not console.is_dumb_terminal)
