"""The paper's MotionRNN and the released program's (thuml/MotionRNN), as two presets of the same options.

Every difference between the two, and where it is settled here:

    paper, and what the program does                                         here
    1  layers below the top keep H; the program keeps the MotionGRU's X      carry
    2  output gate on H; on Dec                                              gate_side
    3  un-warped operand printed as H^{l-1}; H^l                             H^l
    4  output gate 1x1; filter_size                                          blend_kernel_size
    5  u, r, z unstated, 1x1 in others' programs; 3x3                        gate_kernel_size
    6  mask likewise                                                         mask_kernel_size
    7  encoder's kernel unstated; filter_size                                encoder_kernel_size
    8  decoder unstated; tap sum, then transposed 4x4 of stride 2            as the program
    9  no highway into layer 1; a 1x1 projection of u                        highway_first
    10 highway added after the cell; inside it, the same value               inside
    11 highway's source includes its own highway: both                       so here
    12 loss L1 + L2; mean square over all T-1 predictions                    the trainer's
    13 iterations unknown; 80,000 of two steps each                          the trainer's
    14 reversed sequence not mentioned; trained as a second step             the trainer's
    15 initial states unstated; Xavier draws, at test too, H = C and F = D   init_state, state=
    16 initial weights unstated; 0 for u, r, z and mask                      zero_init
    17 a hook meant to scale their gradients by 0.1, which has no effect     left out
    18 parameters within +10%; +12.5% on PredRNN, by the 5x5 output gate     follows 4 to 7
    19 compute within +8%; +10.4%, for the same reason                       follows 4 to 7
    20 four base models; PredRNN                                             predictor
    21 three datasets; Human3.6M                                             not the model's
    22 seven metrics; MSE, SSIM, CSI                                         not the model's
    23 learning rate unstated; 3e-4, constant                                the trainer's
    24 layer norm not mentioned; an option, off in the script                layer_norm
    25 outside of the map unstated; zeros                                    zeros
    26 offset channels unstated; K row offsets, then K column offsets        as the program
    27 F_0, D_0 unstated; one tensor                                         init_state, state=
    28 L-1 MotionGRUs: both                                                  so here
    29 F grows for ever, by 1.31 a step at u = 0.5, to inf and nan: both     max_offset
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..layers.arguments import choice, flag, odd, shown, whole
from ..ops import _arguments as arguments


@dataclass(frozen=True)
class Options:
    """The single differences between variants of MotionRNN."""

    carry: str  # what layer l keeps as H: its block's output "block", or its MotionGRU's output "motion"
    gate_side: str  # what the output gate multiplies: "hidden" or "decoded"
    encoder_kernel_size: int
    gate_kernel_size: int  # of u, r and z
    mask_kernel_size: int
    blend_kernel_size: int  # of the output gate
    highway_first: bool  # a highway into layer 1 as well, from a 1x1 projection of the input
    zero_init: bool  # weights of u, r, z and the mask start at 0
    init_state: str = "zeros"  # or "xavier"
    kernel_size: int = 3  # k, the warp's neighbourhood
    alpha: float = 0.5  # the trend's momentum step; a Parameter is learned
    max_offset: float | None = 1e4  # the largest motion, in pixels of the map; None is no bound


OPTIONS = tuple(option.name for option in fields(Options))
_CHOICES = {
    "carry": ("block", "motion"),
    "gate_side": ("hidden", "decoded"),
    "init_state": ("zeros", "xavier"),
}


def variant_options(variant: str, filter_size: int, **overrides: object) -> Options:
    """The preset "paper" or "official", for cells of `filter_size`, with single options replaced.

    Raises:
        ValueError: unknown variant or choice. TypeError: unknown option. Both list the known ones. Either: a value of
            another type or size.
    """
    presets = {
        "paper": Options(
            carry="block",
            gate_side="hidden",
            encoder_kernel_size=3,
            gate_kernel_size=1,
            mask_kernel_size=1,
            blend_kernel_size=1,
            highway_first=False,
            zero_init=False,
        ),
        "official": Options(
            carry="motion",
            gate_side="decoded",
            encoder_kernel_size=filter_size,
            gate_kernel_size=3,
            mask_kernel_size=3,
            blend_kernel_size=filter_size,
            highway_first=True,
            zero_init=True,
        ),
    }
    if not isinstance(variant, str) or variant not in presets:
        raise ValueError(f"variant is {shown(variant)}; known: {', '.join(presets)}")
    known = asdict(presets[variant])
    changed: dict[str, Any] = dict(overrides)
    for name, value in changed.items():
        if name not in known:
            raise TypeError(f"unknown option {name!r}; known: {', '.join(known)}")
        if name in ("highway_first", "zero_init"):
            changed[name] = flag(name, value)
        elif name.endswith("kernel_size"):
            changed[name] = whole(name, value) if name == "encoder_kernel_size" else odd(name, value)
        elif name in _CHOICES:
            changed[name] = choice(name, value, _CHOICES[name])
    if "alpha" in changed:
        changed["alpha"] = arguments.momentum_of_module(changed["alpha"])
    arguments.bound("max_offset", changed.get("max_offset"))
    return replace(presets[variant], **changed)
