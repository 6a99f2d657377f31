"""The paper's MotionRNN and the released program's (thuml/MotionRNN), as two presets of the same options.

They differ in 29 points. The last column names the option that settles a point, or says how it is settled here:

    the paper                                    the program                                    here
    1  layers below the top keep H               they keep the MotionGRU's X                    carry
    2  the output gate multiplies H              it multiplies Dec                              gate_side
    3  the un-warped operand is H^{l-1}          it is H^l                                      H^l
    4  the output gate is 1x1                    it has filter_size                             blend_kernel_size
    5  the kernel of u, r, z is not stated       3x3 (1x1 in others' programs)                  gate_kernel_size
    6  the mask's kernel is not stated           3x3 (1x1 in others' programs)                  mask_kernel_size
    7  the encoder's kernel is not stated        filter_size                                    encoder_kernel_size
    8  the decoder is not stated                 tap sum, then transposed 4x4 of stride 2       as the program
    9  there is no highway into layer 1          a 1x1 projection of u                          highway_first
    10 the highway is added after the cell       inside it, with the same value                 inside
    11 its source includes its own highway       the same                                       the same
    12 the loss is L1 + L2                       the mean square over all T-1 predictions       the trainer's
    13 the number of iterations is not stated    80,000 of two steps each                       the trainer's
    14 no reversed sequence is mentioned         it is trained as a second step                 the trainer's
    15 the initial states are not stated         Xavier draws, at test too, H = C and F = D     init_state, state=
    16 the initial weights are not stated        0 for u, r, z and mask                         zero_init
    17 no scaling of gradients is mentioned      a hook means to (u, r, z by 0.1), in vain      left out
    18 parameters grow by 10% at most            by 12.5% on PredRNN, from the 5x5 output gate  follows 4 to 7
    19 compute grows by 8% at most               by 10.4%, for the same reason                  follows 4 to 7
    20 four base models                          PredRNN                                        predictor
    21 three datasets                            Human3.6M                                      not the model's
    22 seven metrics                             MSE, SSIM, CSI                                 not the model's
    23 the learning rate is not stated           3e-4, constant                                 the trainer's
    24 no layer norm is mentioned                an option, off in the script                   layer_norm
    25 values outside of the map: not stated     zeros                                          zeros
    26 the offset's channels are not stated      K row offsets, then K column offsets           as the program
    27 F_0 and D_0 are not stated                one tensor                                     init_state, state=
    28 there are L-1 MotionGRUs                  the same                                       the same
    29 F grows for ever (1.31 a step at u = 0.5, to inf and nan); so it does there              max_offset, trend_gate
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..layers.arguments import choice, flag, odd, shown, whole
from ..ops import _arguments as arguments


@dataclass(frozen=True)
class Options:
    """The options that distinguish the variants of MotionRNN.

    Attributes:
        carry: the map that a layer keeps as H, its cell's output ("block") or its MotionGRU's output ("motion").
        gate_side: the operand that the output gate multiplies, "hidden" or "decoded".
        encoder_kernel_size: kernel size of the encoder.
        gate_kernel_size: kernel size of the gates u, r and z, odd.
        mask_kernel_size: kernel size of the warp's mask, odd.
        blend_kernel_size: kernel size of the output gate, odd.
        highway_first: whether layer 1 has a highway as well, from a 1x1 projection of the input.
        zero_init: whether the weights of u, r, z and the mask start at 0.
        init_state: the initial state, "zeros" or "xavier" (Xavier-normal draws).
        kernel_size: k, the side of the warp's neighbourhood, odd.
        alpha: the trend's momentum step, in [0, 1]; a `Parameter` is learned.
        max_offset: the largest motion, in pixels of the half-size map; None sets no bound.
        trend_gate: c in [0, 1] of F_t = F' + c u.D', which is stable for c < 1 and this package's own, see
            `MotionGRUCell`; None is F_t = F' + D', as in the paper and the program.
        residual: whether a prediction is the frame that the step reads plus W_last X^L, so that a background that
            stands still need not be remembered; this package's own. False is W_last X^L alone.
    """

    carry: str
    gate_side: str
    encoder_kernel_size: int
    gate_kernel_size: int
    mask_kernel_size: int
    blend_kernel_size: int
    highway_first: bool
    zero_init: bool
    init_state: str = "zeros"
    kernel_size: int = 3
    alpha: float = 0.5
    max_offset: float | None = 1e4
    trend_gate: float | None = None
    residual: bool = False


OPTIONS = tuple(option.name for option in fields(Options))
_CHOICES = {
    "carry": ("block", "motion"),
    "gate_side": ("hidden", "decoded"),
    "init_state": ("zeros", "xavier"),
}


def variant_options(variant: str, filter_size: int, **overrides: object) -> Options:
    """Return the preset "paper" or "official", for cells of `filter_size`, with single options replaced.

    Raises:
        ValueError: the variant or a choice is unknown (the message lists the known ones), or a value is out of range.
        TypeError: an option is unknown (the message lists the known ones), or a value has another type.
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
        if name in ("highway_first", "zero_init", "residual"):
            changed[name] = flag(name, value)
        elif name.endswith("kernel_size"):
            changed[name] = whole(name, value) if name == "encoder_kernel_size" else odd(name, value)
        elif name in _CHOICES:
            changed[name] = choice(name, value, _CHOICES[name])
    if "alpha" in changed:
        changed["alpha"] = arguments.momentum_of_module(changed["alpha"])
    arguments.bound("max_offset", changed.get("max_offset"))
    if changed.get("trend_gate") is not None:
        changed["trend_gate"] = arguments.unit("trend_gate", changed["trend_gate"])
    return replace(presets[variant], **changed)
