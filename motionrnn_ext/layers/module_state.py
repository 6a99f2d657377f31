"""The state that a module keeps between its calls: every attribute that it and its parts hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn


def state_of(module: nn.Module) -> dict[str, tuple[object, int | None]]:
    """Return every attribute that the module and its parts hold, also in containers and objects, by its path.

    A tensor has the number of its changes in place beside it, anything else None.
    """
    state: dict[str, tuple[object, int | None]] = {}
    seen: set[int] = set()
    todo: deque[tuple[str, object]] = deque()
    for name, part in module.named_modules():
        seen.add(id(part))
        of_classes: dict[str, object] = {}
        for kind in reversed(type(part).__mro__):
            of_classes.update((key, value) for key, value in vars(kind).items() if not callable(value))
        # Names with two underscores are Python's, and those under which torch.compile notes something.
        own = {key: value for key, value in {**of_classes, **vars(part)}.items() if not key.startswith("__")}
        todo.extend((f"{name}.{key}".lstrip("."), value) for key, value in own.items())
    while todo:
        path, value = todo.popleft()
        tracked = isinstance(value, Tensor) and not value.is_inference()
        state[path] = value, cast(Tensor, value)._version if tracked else None
        if id(value) in seen or isinstance(value, (Tensor, type)):
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            todo.extend((f"{path}[{key!r}]", inner) for key, inner in value.items())
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            todo.extend((f"{path}[{i}]", inner) for i, inner in enumerate(value))
        elif hasattr(value, "__dict__") and (isinstance(value, nn.Module) or not callable(value)):
            todo.extend((f"{path}.{key}", inner) for key, inner in vars(value).items())
    return state


def changes(
    before: dict[str, tuple[object, int | None]], after: dict[str, tuple[object, int | None]]
) -> list[str]:
    """Return the paths at which two states differ."""
    paths = {**before, **after}
    return [path for path in paths if not _same(before.get(path), after.get(path))]


def _same(before: tuple[object, int | None] | None, after: tuple[object, int | None] | None) -> bool:
    """Return whether two entries of a state are the same object, unchanged, or equal numbers or strings."""
    return before is not None and after is not None and before[1] == after[1] and is_same(before[0], after[0])


def is_same(before: object, after: object) -> bool:
    """Return whether two values are the same object, or equal numbers or strings."""
    plain = isinstance(after, (bool, int, float, complex, str, bytes))
    return before is after or (plain and before == after)
