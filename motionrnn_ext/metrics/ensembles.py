"""Scores of ensembles: CRPS, spread and skill, and the rank histogram.

Each pixel has N predictions x_1 to x_N and a true value y:

    CRPS       1/N sum |x_i - y| - 1/(2 N^2) sum_ij |x_i - x_j|: of the distribution that the members are
    fair CRPS  1/N sum |x_i - y| - 1/(2 N (N-1)) sum_ij |x_i - x_j|: of the distribution that they are drawn from, so
               that ensembles of different sizes compare (Ferro, Q. J. R. Meteorol. Soc. 140, 2014)
    spread     root of the mean variance of the members, with N - 1
    RMSE       root mean squared error of the mean of the members
    ratio      sqrt((N+1)/N) spread / RMSE: 1 if the members are as uncertain as they are wrong, below 1 if they are too
               sure (Fortin et al., J. Hydrometeorol. 15, 2014)
    ranks      how often the true value is above 0, 1, ..., N of the members: flat if it is like one of them, a U if
               they are too sure. A true value that equals k members counts 1/(k+1) for each rank that it may have; for
               many equal values, such as dry pixels, this flattens the histogram

Both CRPS are sums over a frame, as MAE is: of a single member, CRPS is its MAE. Spread and RMSE are in the unit of a
pixel. Predictions are clipped to [0, 1]. A missing true value (nan) is left out, as in `FrameMetrics`: frames are means
over their known values. A prediction that is nan although the true value is known makes its lead time nan.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..layers.arguments import is_whole
from ..pixels import as_floats, check_range, filled
from .frames import check_shapes

# The sums over frames that `EnsembleMetrics` keeps.
_SUMS = ("crps", "faircrps", "variance", "squared error")


class EnsembleMetrics(Metric):
    """A torchmetrics Metric that accumulates the scores of ensembles over batches and processes.

        metrics = EnsembleMetrics(n_lead=10, members=8)
        for ...:
            metrics.update(ensemble, truth)    # (B, N, L, C, H, W) and (B, L, C, H, W)
        result = metrics.compute()

    `compute()` returns plain numbers: "crps", "faircrps", "spread", "rmse" and "ratio", each the mean over lead times;
    "per_lead", the same names with L numbers each; "ranks", N + 1 shares of all true values, and "ranks_per_lead", L
    times as many; "members", N. With a single member there are only "crps", "rmse", the ranks and "members".

    Args:
        n_lead: L, the number of lead times.
        members: N.

    Raises:
        ValueError: a bad argument; an update with other shapes or with true frames outside of [0, 1]; a compute before
            any update.
        TypeError: an update gets no tensors.
    """

    full_state_update = False
    # (4, L) float64: sums over frames of `_SUMS`.
    sums: Tensor
    # (L,) int64: the frames with a known value.
    frames: Tensor
    # (L, N + 1) float64.
    ranks: Tensor

    def __init__(self, n_lead: int, members: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, value in {"n_lead": n_lead, "members": members}.items():
            if not is_whole(value) or value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value!r}")
        self.n_lead, self.members = int(n_lead), int(members)
        self.add_state("sums", torch.zeros(len(_SUMS), n_lead, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("frames", torch.zeros(n_lead, dtype=torch.int64), dist_reduce_fx="sum")
        ranks = torch.zeros(n_lead, members + 1, dtype=torch.float64)
        self.add_state("ranks", ranks, dist_reduce_fx="sum")

    def update(self, ensemble: Tensor, truth: Tensor) -> None:
        """Add a batch: (B, N, L, C, H, W) and (B, L, C, H, W), floats or uint8."""
        if not isinstance(ensemble, Tensor) or ensemble.ndim != 6 or ensemble.shape[1] != self.members:
            found = tuple(ensemble.shape) if isinstance(ensemble, Tensor) else type(ensemble).__name__
            raise ValueError(f"ensemble must be (B, {self.members}, L, C, H, W); got {found}")
        check_shapes(ensemble[:, 0], truth, self.n_lead)
        check_range(truth, "true frames")
        if not len(truth):
            return
        members = as_floats(ensemble.detach(), "predictions").double().clamp(0, 1)
        fact = as_floats(truth.detach()).double()
        known = ~fact.isnan()
        fact = filled(fact)
        # (4, B, L, C, H, W)
        scores = torch.stack([*pixel_crps(members, fact), *_spread_and_error(members, fact)])
        n_known = known.flatten(2).sum(-1)
        means = scores.masked_fill(~known, 0).flatten(3).sum(-1) / n_known.clamp(min=1)
        # CRPS becomes a sum over a frame.
        means[:2] *= fact[0, 0].numel()
        self.sums += means.sum(1).to(self.sums)
        self.frames += (n_known > 0).sum(0).to(self.frames)
        self.ranks += _ranks(members, fact, known).to(self.ranks)

    def compute(self) -> dict[str, Any]:
        """Return the scores of all batches, see the class."""
        if not self.frames.any():
            raise ValueError("there is nothing to average: call update before compute")
        crps, fair, variance, error = self.sums / self.frames
        spread, rmse, n = variance.sqrt(), error.sqrt(), self.members
        rows = {"crps": crps, "faircrps": fair, "spread": spread, "rmse": rmse}
        rows["ratio"] = ((n + 1) / n) ** 0.5 * spread / rmse
        if n == 1:
            rows = {"crps": crps, "rmse": rmse}
        means = {name: row[self.frames > 0].mean().item() for name, row in rows.items()}
        return {
            **means,
            "per_lead": {name: row.tolist() for name, row in rows.items()},
            "ranks": (self.ranks.sum(0) / self.ranks.sum()).tolist(),
            "ranks_per_lead": (self.ranks / self.ranks.sum(1, keepdim=True)).tolist(),
            "members": n,
        }


def pixel_crps(members: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return CRPS and fair CRPS of values: (B, N, *S) and (B, *S) -> (B, *S) twice; fair CRPS of N = 1 is nan."""
    n = members.shape[1]
    error = (members - truth[:, None]).abs().mean(1)
    # The sum of |x_i - x_j| over all pairs is that of 2 (2i - N - 1) x_i over sorted members.
    factors = 2 * torch.arange(1, n + 1, dtype=members.dtype, device=members.device) - n - 1
    pairs = 2 * (members.sort(1).values * factors.view(-1, *[1] * (members.ndim - 2))).sum(1)
    fair = error - pairs / (2 * n * (n - 1)) if n > 1 else error * torch.nan
    return error - pairs / (2 * n**2), fair


def _spread_and_error(members: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance of the members, and the squared error of their mean, of every value."""
    variance = members.var(1) if members.shape[1] > 1 else torch.zeros_like(truth)
    return variance, (members.mean(1) - truth).square()


def _ranks(members: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Return how many known true values (B, L, C, H, W) have each rank among the members, (L, N + 1); nan at a lead
    time of which a member is nan where the true value is known.
    """
    n_lead, n_ranks = truth.shape[1], members.shape[1] + 1
    # A row per lead time.
    below, equal = (
        kind.sum(1).transpose(0, 1).flatten(1)
        for kind in (members < truth[:, None], members == truth[:, None])
    )
    # A value's share begins at its lowest rank and ends above its highest one.
    share = known.transpose(0, 1).flatten(1) / (equal + 1).double()
    edges = truth.new_zeros(n_lead, n_ranks + 1)
    edges.scatter_add_(1, below, share).scatter_add_(1, below + equal + 1, -share)
    is_lost = (members.isnan() & known[:, None]).transpose(0, 2).flatten(1).any(1)
    return edges.cumsum(1)[:, :-1].masked_fill(is_lost[:, None], math.nan)
