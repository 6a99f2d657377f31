"""Say why `convert` and `revert` cannot change a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from types import ModuleType

from torch import Tensor, nn

from .converted_cell import ConvertedCell, is_cell
from .motion_gru import MotionGRU
from .motion_gru_cell import MotionGRUCell
from .recognition import CONVOLUTIONS, is_candidate

# Usual names of a wrapper's model, which may be properties.
_USUAL_NAMES = ("model", "module", "network", "net")


def check_module(model: object) -> None:
    """Raise a TypeError unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {_title(model)}; it should be a torch.nn.Module{_instead(model)}")


def _title(model: object) -> str:
    return f"the class {model.__name__}" if isinstance(model, type) else f"of type {type(model).__name__}"


def _instead(model: object) -> str:
    """Return advice on what to pass in place of an object that is no module, or "" if there is none."""
    if isinstance(model, type):
        return ", an instance of it" if issubclass(model, nn.Module) else ""
    if isinstance(getattr(model, "__self__", None), nn.Module):
        return ": the one whose method this is"
    if isinstance(model, Mapping) and any(isinstance(value, Tensor) for value in model.values()):
        return ": load these tensors into one with load_state_dict, and pass that"
    if isinstance(model, (Mapping, list, tuple, set)):
        return ": the one that holds these"
    held = _modules_of(model, _USUAL_NAMES) or [
        f"{name}.{inner}" for name, part in _attributes(model).items() for inner in _modules_of(part)
    ]
    return f": pass {' or '.join(f'model.{name}' for name in held)}" if held else ""


def _modules_of(owner: object, properties: tuple[str, ...] = ()) -> list[str]:
    """Return the names of the attributes, and of those of `properties`, that are modules."""
    names = dict.fromkeys([*_attributes(owner), *properties])
    return [name for name in names if isinstance(_attribute(owner, name), nn.Module)]


def _attributes(owner: object) -> dict[str, object]:
    """Return the attributes of an instance; those whose names begin with _ come last."""
    found = {} if isinstance(owner, (type, ModuleType)) else dict(getattr(owner, "__dict__", {}))
    return {name: found[name] for name in sorted(found, key=lambda name: name.startswith("_"))}


def _parts(held: object) -> Iterable[object]:
    """Return the entries of a plain list, tuple or dict."""
    return held.values() if isinstance(held, Mapping) else held if isinstance(held, (list, tuple)) else ()


def _holds_candidate(part: object) -> bool:
    return isinstance(part, nn.Module) and any(is_candidate(m) or is_cell(m) for m in part.modules())


def _attribute(owner: object, name: str) -> object:
    try:
        return getattr(owner, name, None)
    except Exception:  # raised by a property
        return None


def n_modules(model: nn.Module) -> int:
    return len(list(model.modules()))


def nothing_found(model: nn.Module) -> str:
    """Return a sentence about what a model without an official MotionGRU or a recurrent cell holds."""
    kinds_of_ours = (MotionGRU, MotionGRUCell, ConvertedCell)
    ours = [name for name, m in model.named_modules() if isinstance(m, kinds_of_ours)]
    if ours:
        return f"its layers are this package's already: {', '.join(name or 'itself' for name in ours)}"
    unregistered = [
        f"{name}.{attribute}".lstrip(".")
        for name, module in model.named_modules()
        for attribute, held in _attributes(module).items()
        if not attribute.startswith("_") and any(map(_holds_candidate, _parts(held)))
    ]
    if unregistered:
        return (
            f"there are MotionGRUs or recurrent cells in a plain list or dict, where PyTorch does not find them: "
            f"{', '.join(unregistered)} should be an nn.ModuleList or nn.ModuleDict"
        )
    kinds = Counter(type(m).__name__ for m in model.modules())
    seen = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(8)) + (", ..." if len(kinds) > 8 else "")
    return (
        f"no module with the official MotionGRU's {', '.join(CONVOLUTIONS)}, or a recurrent cell's conv_x and conv_h, "
        f"among the {n_modules(model)} of this model ({seen})"
    )
