"""How far draws of Markov chains can be trusted, in plain torch.

Every function takes draws of shape C x S x ... (chains, draws, any event shape) and treats
each element of the event by itself, all of them in one batch. Diagnose what you will use,
function values ``f(X_test)`` for a network: its single weights are not identified, so their
chains may disagree where the functions do not.

A variable with a chain that never moves gets NaN and a `ConvergenceWarning`: such a chain
carries no information about how well it mixes, and neither 1 nor the number of draws would
be a true answer.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from .. import validation
from ..errors import ConvergenceWarning, DomainError, ShapeError, user_level
from .chains import ess_for, mcse_for, quantile, rank_rhat, rhat_of, split, variance

_MIN_DRAWS = 4  # each half of a chain needs two draws to have a variance


def rhat(x: Tensor) -> Tensor:
    """Rank-normalised split R-hat, the larger of its bulk and its folded value.

    Each chain is cut into halves; the draws of all halves are replaced by the normal scores
    ``z = Phi^-1((r - 3/8) / (n + 1/4))`` of their ranks ``r`` among all ``n``; R-hat is that of
    :func:`split_rhat`. The folded value does the same with the distances to the median, so it
    sees chains that differ in scale only. Values below 1.01 are the usual demand (Vehtari,
    Gelman, Simpson, Carpenter and Bürkner 2021, arXiv 1903.08008). One chain is enough: its
    halves are then compared.

    Args:
        x: Draws, C x S x ... with S >= 4.

    Returns:
        R-hat of every element, in float64; NaN (with a `ConvergenceWarning`) where a chain is constant.

    Raises:
        ShapeError: Fewer than two dimensions or fewer than four draws.
        NonFiniteError: NaN or infinity among the draws.

    Example:
        >>> x = torch.randn(4, 500, 3, generator=torch.Generator().manual_seed(0))
        >>> bool((rhat(x) < 1.02).all())
        True
    """
    draws, event = _events("rhat", x)
    return _withhold("rhat", rank_rhat(draws), _stuck(draws)).reshape(event)


def split_rhat(x: Tensor) -> Tensor:
    """R-hat of the halves of the chains, on the draws as they are.

    With the within variance ``W`` (mean over the half chains of their variances) and ``V`` the
    variance of their means, ``R-hat = sqrt(((N - 1) / N * W + V) / W)`` for halves of N draws;
    of an odd number of draws the middle one is left out (Gelman et al. 2013, Bayesian Data
    Analysis, section 11.4). Prefer :func:`rhat`, which stays valid for infinite variances.

    Args:
        x: Draws, C x S x ... with S >= 4.

    Returns:
        Split R-hat of every element, in float64; NaN (with a `ConvergenceWarning`) where a chain is constant.

    Raises:
        ShapeError: Fewer than two dimensions or fewer than four draws.
        NonFiniteError: NaN or infinity among the draws.

    Example:
        >>> x = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
        >>> x[0] += 3.0
        >>> bool(split_rhat(x) > 1.5)
        True
    """
    draws, event = _events("split_rhat", x)
    return _withhold("split_rhat", rhat_of(split(draws)), _stuck(draws)).reshape(event)


def nested_rhat(x: Tensor, superchains: int | Tensor) -> Tensor:
    """Nested R-hat, for many chains too short for the usual one.

    The C chains form K super-chains of M chains which start from the same point and run
    independently. With ``B`` the variance of the K super-chain means and ``W`` the mean over
    super-chains of (variance of their M chain means + mean of their M chain variances),
    ``R-hat = sqrt(1 + B / W)``; a variance over one chain or one draw counts as zero, so a
    single draw per chain will do (Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and
    Gelman 2022, arXiv 2110.13017). It cannot fall below 1. For chains at stationarity with one
    draw each ``B / W`` is near 1/M: compare with ``sqrt(1 + 1/M)``, not with 1.

    Args:
        x: Draws, C x S x ... with S >= 1.
        superchains: The number K of super-chains, chains lying in K consecutive groups of M,
            or a tensor of C integers that says to which super-chain each chain belongs.

    Returns:
        Nested R-hat of every element, in float64; NaN (with a `ConvergenceWarning`) where a chain (or,
        with one draw a chain, a super-chain) is constant.

    Raises:
        ShapeError: Fewer than two super-chains, groups of unequal size, or one draw in a super-chain.
        NonFiniteError: NaN or infinity among the draws.

    Example:
        >>> x = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
        >>> bool(nested_rhat(x, 4) < 1.15)
        True
    """
    draws, event = _events("nested_rhat", x, minimum=1)
    groups = _group("nested_rhat", draws.shape[1], superchains)
    nested = draws[:, groups]  # E x K x M x S
    _, _, chains, length = nested.shape
    if chains * length < 2:
        raise ShapeError(
            "nested_rhat: a super-chain must hold at least two draws, got one chain of one draw; "
            "run more chains from each starting point or keep more draws"
        )
    means = nested.mean(-1)
    within = nested.new_zeros(nested.shape[:2])
    if length > 1:
        within = within + variance(nested).mean(-1)
    if chains > 1:
        within = within + variance(means)
    value = (1 + variance(means.mean(-1)) / within.mean(-1)).sqrt()
    stuck = _stuck(draws if length > 1 else nested.squeeze(-1))
    return _withhold("nested_rhat", value, stuck).reshape(event)


def ess(x: Tensor, kind: str | float = "bulk") -> Tensor:
    """Effective sample size: how many independent draws would estimate as well.

    ``ESS = C S / tau`` with the integrated autocorrelation time ``tau = -1 + 2 sum_j P_j`` over
    Geyer's initial monotone sequence of the pair sums ``P_j = rho_2j + rho_2j+1``, where ``rho``
    combines all half chains, so chains that disagree count for little (Vehtari et al. 2021,
    arXiv 1903.08008; Geyer 1992). ``tau`` is at least ``1 / log10(C S)``: anti-correlated
    chains may give more than ``C S``, but not without bound.

    Args:
        x: Draws, C x S x ... with S >= 4.
        kind: What is to be estimated: "bulk" (rank-normalised draws), "tail" (the worse of the
            5 % and 95 % quantiles), "mean", "sd", "median", or a number in (0, 1), that quantile.

    Returns:
        The effective sample size of every element, in float64; NaN (with a `ConvergenceWarning`) where
        a chain is constant, or where so many draws coincide that all lie on one side of the quantile.

    Raises:
        ShapeError: Fewer than two dimensions or fewer than four draws.
        DomainError: An unknown kind or a probability outside (0, 1).
        NonFiniteError: NaN or infinity among the draws.

    Example:
        >>> x = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
        >>> bool(1500 < ess(x) < 2500), bool(ess(x, "tail") > 1000)
        (True, True)
    """
    kind = _kind("ess", kind, ("bulk", "tail", "mean", "sd", "median"))
    draws, event = _events("ess", x)
    return _withhold("ess", ess_for(draws, kind), _stuck(draws)).reshape(event)


def mcse(x: Tensor, kind: str | float = "mean") -> Tensor:
    """Monte Carlo standard error of an estimate from the draws.

    Of the mean ``sd / sqrt(ESS)``; of the standard deviation by the delta method,
    ``sqrt(Var((x - m)^2) / ESS) / (2 sd)``; of a quantile half the distance between the order
    statistics that bound the central 68 % of its Beta(ESS p + 1, ESS (1 - p) + 1) law. Each
    with the effective sample size of that very estimate (Vehtari et al. 2021, arXiv 1903.08008).

    Args:
        x: Draws, C x S x ... with S >= 4.
        kind: "mean", "sd", "median", or a number in (0, 1), that quantile.

    Returns:
        The standard error of every element in units of x, in float64; NaN (with a `ConvergenceWarning`)
        where a chain is constant.

    Raises:
        ShapeError: Fewer than two dimensions or fewer than four draws.
        DomainError: An unknown kind or a probability outside (0, 1).
        NonFiniteError: NaN or infinity among the draws.

    Example:
        >>> x = torch.randn(4, 2500, generator=torch.Generator().manual_seed(0))
        >>> round(mcse(x).item(), 2), bool(mcse(x, 0.99) > 2 * mcse(x))
        (0.01, True)
    """
    kind = _kind("mcse", kind, ("mean", "sd", "median"))
    draws, event = _events("mcse", x)
    return _withhold("mcse", mcse_for(draws, kind), _stuck(draws)).reshape(event)


def bfmi(energy: Tensor) -> Tensor:
    """E-BFMI: how well fresh momenta explore the energies of a Hamiltonian sampler.

    ``mean((E_s - E_s-1)^2) / Var(E)`` of each chain: near 1 when a new momentum can reach every
    energy, small when energy changes slowly, a sign of heavy tails or funnels; below 0.3 look
    again (Betancourt 2016, arXiv 1604.00695).

    Args:
        energy: Hamiltonian at the draws, C x S with S >= 4.

    Returns:
        E-BFMI of the C chains, in float64; NaN (with a `ConvergenceWarning`) for a constant energy.

    Raises:
        ShapeError: Not two-dimensional, or fewer than four draws.
        NonFiniteError: NaN or infinity among the energies.

    Example:
        >>> bfmi(torch.tensor([[0.0, 1.0, 0.0, 1.0]]))
        tensor([3.], dtype=torch.float64)
    """
    if torch.is_tensor(energy) and energy.ndim != 2:
        raise ShapeError(f"bfmi: energy must have shape (chains, draws), got {tuple(energy.shape)}")
    draws, _ = _events("bfmi", energy, name="energy")
    chains = draws[0]
    value = chains.diff(dim=-1).square().mean(-1) / variance(chains)
    return _withhold("bfmi", value, _stuck(chains.unsqueeze(1)))


def summary(x: Tensor, *, prob: float = 0.9) -> dict[str, Tensor]:
    """Estimates and diagnostics of every element, as a plain table.

    Args:
        x: Draws, C x S x ... with S >= 4.
        prob: Probability of the central interval whose ends are reported.

    Returns:
        Tensors of the event shape in float64 under "mean", "sd", the lower end, the median and
        the upper end of the interval ("q5", "q50", "q95" for 0.9), "mcse_mean", "mcse_sd",
        "ess_bulk", "ess_tail" and "rhat".

    Raises:
        ShapeError: Fewer than two dimensions or fewer than four draws.
        DomainError: `prob` outside (0, 1).
        NonFiniteError: NaN or infinity among the draws.

    Example:
        >>> x = torch.randn(4, 500, 2, generator=torch.Generator().manual_seed(0))
        >>> ", ".join(summary(x, prob=0.9))
        'mean, sd, q5, q50, q95, mcse_mean, mcse_sd, ess_bulk, ess_tail, rhat'
    """
    prob = _probability("summary", "prob", prob)
    draws, event = _events("summary", x)
    pooled = draws.flatten(1)
    ordered = pooled.sort(-1).values
    table = {"mean": pooled.mean(-1), "sd": variance(pooled).sqrt()}
    table |= {f"q{100 * p:g}": quantile(ordered, p) for p in ((1 - prob) / 2, 0.5, (1 + prob) / 2)}
    diagnostics = {
        "mcse_mean": mcse_for(draws, "mean"),
        "mcse_sd": mcse_for(draws, "sd"),
        "ess_bulk": ess_for(draws, "bulk"),
        "ess_tail": ess_for(draws, "tail"),
        "rhat": rank_rhat(draws),
    }
    # What the draws say about themselves stays; what a stuck chain cannot tell is withheld, with one warning.
    rows = _withhold("summary", torch.stack(list(diagnostics.values())), _stuck(draws))
    table |= zip(diagnostics, rows, strict=True)
    return {name: value.reshape(event) for name, value in table.items()}


def _events(where: str, x: Any, *, minimum: int = _MIN_DRAWS, name: str = "x") -> tuple[Tensor, torch.Size]:
    """The draws in float64 as E x C x S, and the event shape."""
    if torch.is_tensor(x) and (x.ndim < 2 or x.shape[0] < 1):
        raise ShapeError(
            f"{where}: {name} must have shape (chains, draws, ...), got {tuple(x.shape)}; one chain is x[None]"
        )
    if torch.is_tensor(x) and x.shape[1] < minimum:
        raise ShapeError(
            f"{where}: {name} must hold at least {minimum} draws a chain, got shape {tuple(x.shape)}; "
            "run longer chains, or use nested_rhat for many short ones"
        )
    x = validation.tensor(where, name, x).detach().double()
    event = x.shape[2:]
    return x.reshape(*x.shape[:2], event.numel()).permute(2, 0, 1).contiguous(), event


def _stuck(draws: Tensor) -> Tensor:
    """Where (E) some chain of E x C x S never moves."""
    return (draws.amax(-1) == draws.amin(-1)).any(-1)


def _withhold(where: str, values: Tensor, stuck: Tensor) -> Tensor:
    """Put NaN for stuck variables into values ... x E, and warn of every NaN there is."""
    values = values.masked_fill(stuck, math.nan)
    undefined = values.isnan().flatten(0, -2).any(0) if values.ndim > 1 else values.isnan()
    if undefined.any():
        warnings.warn(
            f"{where}: {int(undefined.sum())} of {stuck.numel()} variables get NaN: {int(stuck.sum())} with a constant "
            "chain, the others because too many draws coincide; the sampler is stuck there, or the variable is "
            "constant or discrete by construction",
            ConvergenceWarning,
            stacklevel=user_level(),
        )
    return values


def _group(where: str, chains: int, superchains: int | Tensor) -> Tensor:
    """Indices K x M of the chains of every super-chain."""
    if not torch.is_tensor(superchains):
        count = validation.positive_int(where, "superchains", superchains)
        if count < 2 or chains % count:
            raise ShapeError(
                f"{where}: {chains} chains do not form {count} super-chains of one size; at least two are needed"
            )
        return torch.arange(chains).reshape(count, -1)
    if superchains.is_floating_point() or superchains.shape != (chains,):
        raise ShapeError(
            f"{where}: superchains must be an integer or {chains} integers, one a chain, "
            f"got {superchains.dtype} of shape {tuple(superchains.shape)}"
        )
    sizes = superchains.unique(return_counts=True)[1]
    if len(sizes) < 2 or (sizes != sizes[0]).any():
        raise ShapeError(f"{where}: there must be at least two super-chains of one size, got sizes {sizes.tolist()}")
    return superchains.argsort(stable=True).reshape(len(sizes), -1).cpu()


def _probability(where: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise DomainError(f"{where}: {name} must be a number strictly between 0 and 1, got {value!r}")
    return float(value)


def _kind(where: str, kind: Any, options: tuple[str, ...]) -> str | float:
    if isinstance(kind, str):
        return 0.5 if validation.choice(where, "kind", kind, options) == "median" else kind
    return _probability(where, "kind", kind)
