"""State dicts of modules that keep other tensors in place of a weight: pruned, normed or parametrised modules."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# The endings of the two names that stand for a weight, and the function that gives the module its weight again.
_PAIRS = {
    ("_g", "_v"): "torch.nn.utils.remove_weight_norm",
    ("_orig", "_u"): "torch.nn.utils.remove_spectral_norm",
}
_REMOVE = "torch.nn.utils.parametrize.remove_parametrizations"


def plain_weights(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors with every pruning mask applied, and the names of those weights.

    Raises:
        ValueError: a weight can only be computed by its module, or a mask has another shape than its weight; the
            message names the function to call before the model is saved.
    """
    if adapter := next(
        (name for name in tensors if re.search(r"(^|\.)(lora_\w+|base_layer)(\.|$)", name)), None
    ):
        raise ValueError(
            f"{where} has {adapter}, of an adapter; merge it before it is saved: model.merge_and_unload() of peft"
        )
    found, pruned = dict(tensors), []
    for name in tensors:
        weight = name.removesuffix("_mask")
        if name.endswith("_mask") and f"{weight}_orig" in tensors and weight not in tensors:
            mask, original = found.pop(name), found.pop(f"{weight}_orig")
            if mask.shape != original.shape:
                raise ValueError(
                    f"{name} has shape {tuple(mask.shape)}; it should be {tuple(original.shape)}, that of "
                    f"{weight}_orig in {where}"
                )
            found[weight] = original * mask.to(original.dtype)
            pruned.append(weight)
    for name in found:
        if parametrised := re.match(r"(?:(.*)\.)?parametrizations\.(\w+)\.", name):
            _refuse(name, where, _REMOVE, parametrised[1] or "model", parametrised[2])
        for (one, other), remove in _PAIRS.items():
            weight = name.removesuffix(one)
            if name.endswith(one) and f"{weight}{other}" in found and weight not in found:
                _refuse(name, where, remove, *weight.rpartition(".")[::2])
    return found, pruned


def _refuse(name: str, where: str, remove: str, module: str, weight: str) -> None:
    """Raise a ValueError for a weight that only its module can compute."""
    raise ValueError(
        f"{where} has {name} and no {weight}, which only its module can compute from it; call "
        f"{remove}({module}, {weight!r}) before it is saved"
    )
