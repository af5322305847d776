"""Ranks, autocovariances and effective sample sizes of chains: the arithmetic behind `mcmc`.

Everything here takes float64 draws as E x C x S (events, chains, draws; draws contiguous, so
that sorting and transforms run along memory), checks nothing and returns E values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_BLOCK = 2**23  # numbers in one transform: events beyond that are handled block by block, to bound memory
_TAILS = (0.05, 0.95)


def variance(x: Tensor, dim: int = -1) -> Tensor:
    """Unbiased variance along `dim`; torch's own warns where there are no events."""
    return (x - x.mean(dim, keepdim=True)).square().sum(dim) / (x.shape[dim] - 1)


def split(draws: Tensor) -> Tensor:
    """Both halves of every chain, E x 2C x S//2; of an odd number of draws the middle one is left out."""
    half = draws.shape[-1] // 2
    return torch.cat([draws[..., :half], draws[..., -half:]], dim=1)


def normal_scores(draws: Tensor) -> Tensor:
    """Blom's normal scores of the ranks among all draws of an event, ties sharing their mean rank."""
    ordered, order = draws.flatten(1).sort(-1)
    n = ordered.shape[-1]
    index = torch.arange(n, device=draws.device)
    differs = torch.ones(ordered.shape[0], n + 1, dtype=torch.bool, device=draws.device)
    differs[:, 1:-1] = ordered[:, 1:] != ordered[:, :-1]  # where a run of equal draws begins, and one past its end
    first = torch.where(differs[:, :-1], index, 0).cummax(-1).values
    last = torch.where(differs[:, 1:], index, n).flip(-1).cummin(-1).values.flip(-1)
    rank = 1 + (first + last).double() / 2
    scores = torch.special.ndtri((rank - 0.375) / (n + 0.25))
    return torch.empty_like(scores).scatter_(-1, order, scores).reshape(draws.shape)


def quantile(ordered: Tensor, prob: float) -> Tensor:
    """The order statistics E x n interpolated linearly at (n - 1) p (type 7 of Hyndman and Fan)."""
    position = (ordered.shape[-1] - 1) * prob
    nearest = round(position)
    # An order statistic but for rounding must be exactly it: indicators of x <= q depend on it.
    if abs(position - nearest) < 4 * torch.finfo(torch.float64).eps * ordered.shape[-1]:
        return ordered[:, nearest]
    below = math.floor(position)
    return ordered[:, below] + (position - below) * (ordered[:, below + 1] - ordered[:, below])


def rhat_of(chains: Tensor) -> Tensor:
    """R-hat of the chains as they are; infinite for constant chains that differ, NaN for all equal."""
    n = chains.shape[-1]
    return ((n - 1) / n + variance(chains.mean(-1)) / variance(chains).mean(-1)).sqrt()


def rank_rhat(draws: Tensor) -> Tensor:
    """The larger of bulk and folded R-hat of the halves."""
    halves = split(draws)
    ordered = halves.flatten(1).sort(-1).values
    n = ordered.shape[-1]
    median = (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2
    folded = (halves - median[:, None, None]).abs()
    # Draws of two values fold onto one, which has no R-hat: fmax then keeps that of the bulk.
    return torch.fmax(rhat_of(normal_scores(halves)), rhat_of(normal_scores(folded)))


def autocovariance(chains: Tensor) -> Tensor:
    """Biased autocovariances at lags 0 to N - 1, averaged over the chains: E x N."""
    n = chains.shape[-1]
    size = 2 ** math.ceil(math.log2(2 * n))  # zeros up to twice the length: no lag wraps around
    centred = chains - chains.mean(-1, keepdim=True)
    blocks = centred.split(max(1, _BLOCK // (chains.shape[1] * size)))
    # The transform is linear: average the power over the chains, then go back once.
    power = [torch.view_as_real(torch.fft.rfft(block, n=size)).square().sum(-1).mean(1) for block in blocks]
    return torch.fft.irfft(torch.cat(power), n=size)[:, :n] / n


def ess_of(chains: Tensor) -> Tensor:
    """Effective sample size of the chains as they are; NaN where all draws coincide."""
    events, count, n = chains.shape
    if events == 0:
        return chains.new_zeros(0)
    covariance = autocovariance(chains)
    within = covariance[:, :1] * n / (n - 1)
    total = covariance[:, :1] + variance(chains.mean(-1))[:, None]
    rho = 1 - (within - covariance) / total
    rho[:, 0] = 1.0

    # Sums of pairs of lags, as far as there are lags to tell them; the first that is not positive ends them.
    last = max(0, (n - 3) // 2)
    even = rho[:, 0 : 2 * last + 1 : 2]
    pairs = even + rho[:, 1 : 2 * last + 2 : 2]
    ends = pairs <= 0
    stop = torch.where(ends.any(-1), ends.int().argmax(-1), last)[:, None]
    before = torch.arange(last + 1, device=chains.device) < stop
    decreasing = pairs.cummin(-1).values  # as the sums of a reversible chain must
    # The pair at the end adds its even lag once; a negative one only where the pair as a whole is not.
    final = even.gather(-1, stop)
    final = torch.where(pairs.gather(-1, stop) >= 0, final, final.clamp_min(0.0)).squeeze(-1)
    tau = -1 + 2 * (decreasing * before).sum(-1) + final

    draws = count * n
    size = draws / tau.clamp_min(1 / math.log10(draws))
    return size.masked_fill((chains == chains[:, :1, :1]).flatten(1).all(-1), math.nan)


def ess_for(draws: Tensor, kind: str | float) -> Tensor:
    """Effective sample size for an estimate: "bulk", "tail", "mean", "sd" or a quantile's probability."""
    if isinstance(kind, float):
        cut = quantile(draws.flatten(1).sort(-1).values, kind)[:, None, None]
        return ess_of(split((draws <= cut).double()))
    estimates: dict[str, Callable[[], Tensor]] = {
        "bulk": lambda: ess_of(normal_scores(split(draws))),
        "tail": lambda: torch.minimum(ess_for(draws, _TAILS[0]), ess_for(draws, _TAILS[1])),
        "mean": lambda: ess_of(split(draws)),
        "sd": lambda: ess_of(split((draws - draws.mean((1, 2), keepdim=True)).square())),
    }
    return estimates[kind]()


def mcse_for(draws: Tensor, kind: str | float) -> Tensor:
    """Monte Carlo standard error of an estimate: "mean", "sd" or a quantile's probability."""
    pooled = draws.flatten(1)
    if kind == "mean":
        return (variance(pooled) / ess_for(draws, "mean")).sqrt()
    if kind == "sd":
        squares = (pooled - pooled.mean(-1, keepdim=True)).square()
        mean = squares.mean(-1, keepdim=True)
        return ((squares - mean).square().mean(-1) / mean.squeeze(-1) / ess_for(draws, "sd")).sqrt() / 2
    return _mcse_quantile(draws, float(kind))


def _mcse_quantile(draws: Tensor, prob: float) -> Tensor:
    from scipy.special import betaincinv, ndtr  # torch has no inverse of the incomplete beta function

    ordered = draws.flatten(1).sort(-1).values
    n = ordered.shape[-1]
    size = ess_for(draws, prob)
    undefined = size.isnan()
    known = size.masked_fill(undefined, 1.0).cpu().numpy()
    low, high = (
        torch.as_tensor(betaincinv(known * prob + 1, known * (1 - prob) + 1, ndtr(z)), device=draws.device) * n - 1
        for z in (-1.0, 1.0)
    )
    lower = ordered.gather(-1, low.floor().clamp_min(0).long()[:, None])
    upper = ordered.gather(-1, high.ceil().clamp_max(n - 1).long()[:, None])
    return ((upper - lower).squeeze(-1) / 2).masked_fill(undefined, math.nan)
