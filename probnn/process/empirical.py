"""Weighted draws of a process: what samplers and ensembles return."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DegenerateWeightsWarning, DomainError, ShapeError, UnsupportedError, user_level
from ..likelihoods import Likelihood
from ..networks import Layout
from ..random import Source
from .base import StochasticProcess
from .parametric import ParametricProcess

if TYPE_CHECKING:
    from botorch.posteriors import Posterior

# Below this effective sample size, reweighted draws say little about the posterior.
MIN_ESS = 10.0


@dataclass(frozen=True, eq=False)
class EmpiricalProcess(ParametricProcess):
    """Weighted draws of the parameters of a process: what samplers and ensembles return.

    Args:
        base: The process whose parameters were drawn.
        theta: Draws, ``C x S x P`` (chains, draws, parameters).
        psi: Draws of the likelihood's parameters, ``C x S x R``.
        likelihood: The likelihood of the fit.
        log_weights: ``... x (C S)``, up to a constant; None: equal weights. Leading dimensions come
            from conditioning on batches of data.
        info: What happened while fitting.

    Raises:
        ShapeError: theta, psi or the log-weights do not belong to the same draws of `base`.
        DomainError: They differ in dtype or device, are no floating-point tensors, or all weights are zero.
        NonFiniteError: A tensor holds NaN or infinity (log-weights may be ``-inf``).

    Example:
        >>> import torch, probnn
        >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=()), probnn.priors.NormalWeights())
        >>> theta = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])  # a chain of two draws: slope, intercept
        >>> weights = torch.tensor([0.25, 0.75])
        >>> process = probnn.EmpiricalProcess(prior, theta, theta[..., :0], log_weights=weights.log())
        >>> round(process.predict(torch.ones(1, 1)).mean.item(), 6)
        2.5
    """

    base: ParametricProcess
    theta: Tensor
    psi: Tensor
    likelihood: Likelihood | None = None
    log_weights: Tensor | None = None
    info: Any = None

    def __post_init__(self) -> None:
        validation.tensor("EmpiricalProcess", "theta", self.theta)
        if not torch.is_tensor(self.psi):
            raise DomainError(
                f"EmpiricalProcess: psi must be a torch tensor, got a {type(self.psi).__name__}; "
                "without parameters of the likelihood it is theta[..., :0]"
            )
        validation.tensor("EmpiricalProcess", "psi", self.psi, like=self.theta)
        draws = tuple(self.theta.shape[:2])
        if tuple(self.theta.shape) != (*draws, self.base.num_parameters) or 0 in draws:
            raise ShapeError(
                f"EmpiricalProcess: theta must have shape (chains, draws, {self.base.num_parameters}) with at least "
                f"one draw, got {tuple(self.theta.shape)}"
            )
        R = self.likelihood.num_parameters if self.likelihood else 0
        if tuple(self.psi.shape) != (*draws, R):
            raise ShapeError(f"EmpiricalProcess: psi must have shape {(*draws, R)}, got {tuple(self.psi.shape)}")
        if self.log_weights is not None:
            validation.log_weights("EmpiricalProcess", self.log_weights, self.num_draws, self.theta)
        self._take(self.base, "input_dim", "output_dim")
        self._take(self.theta, "dtype", "device")

    @property
    def prior(self) -> StochasticProcess | None:  # type: ignore[override]
        """The prior of the fit."""
        return self.base.prior if self.base.prior is not None else self.base

    @property
    def layout(self) -> Layout:
        """The blocks of theta."""
        return self.base.layout

    @property
    def num_draws(self) -> int:
        """Number of draws, all chains together."""
        return self.theta.shape[0] * self.theta.shape[1]

    @property
    def weights(self) -> Tensor:
        """Normalised weights, ``... x (C S)``."""
        if self.log_weights is None:
            return self.theta.new_full((self.num_draws,), 1 / self.num_draws)
        return self.log_weights.softmax(-1)

    @property
    def ess(self) -> Tensor:
        r"""Effective sample size of the weights (Kish), :math:`1/\sum_s w_s^2`, one a batch element."""
        return 1 / self.weights.square().sum(-1)

    def thin(self, num_draws: int) -> EmpiricalProcess:
        """Keep `num_draws` draws of equal weight, spread evenly over the chains (systematically over the weights).

        Draws of large weight are kept several times; so are all of them where more are asked for than there are.

        Args:
            num_draws: How many to keep.

        Returns:
            The process of these draws, one chain without traces.

        Raises:
            DomainError: `num_draws` is no positive integer.
            UnsupportedError: The process was conditioned on a batch of data.
        """
        validation.positive_int("EmpiricalProcess.thin", "num_draws", num_draws)
        weights = self._single_weights("thin").double()
        at = (torch.arange(num_draws, dtype=torch.double, device=weights.device) + 0.5) / num_draws
        kept = torch.searchsorted(weights.cumsum(0), at).clamp_max(self.num_draws - 1)
        theta, psi = self.theta.flatten(0, 1)[kept], self.psi.flatten(0, 1)[kept]
        # Traces belong to chains and draws that are no more.
        info = replace(self.info, trace={}) if hasattr(self.info, "trace") else self.info
        return replace(self, theta=theta.unsqueeze(0), psi=psi.unsqueeze(0), log_weights=None, info=info)

    def to_arviz(self, **options: Any) -> Any:
        """The draws as ArviZ groups.

        Args:
            **options: Those of :func:`probnn.bridges.to_arviz`.

        Returns:
            ArviZ's container of groups.
        """
        from ..bridges.arviz import to_arviz

        return to_arviz(self, **options)

    def _single_weights(self, verb: str) -> Tensor:
        weights = self.weights
        if weights.ndim > 1:
            raise UnsupportedError(
                f"EmpiricalProcess.{verb}: the process was conditioned on a batch of data of shape "
                f"{tuple(weights.shape[:-1])}, so it is a batch of processes; predict serves them all"
            )
        return weights

    def _sample_joint(self, shape: torch.Size, generator: Source) -> tuple[Tensor, Tensor]:
        weights = self._single_weights("sample").double()
        u = rnd.uniform((shape.numel(),), generator=generator, dtype=torch.double, device=self.device)
        index = torch.searchsorted(weights.cumsum(0), u, right=True).clamp_max(self.num_draws - 1)
        theta, psi = self.theta.flatten(0, 1)[index], self.psi.flatten(0, 1)[index]
        return theta.reshape(*shape, -1), psi.reshape(*shape, self.psi.shape[-1])

    def _sample_parameters(self, shape: torch.Size, generator: Source) -> Tensor:
        return self._sample_joint(shape, generator)[0]

    def _apply(self, theta: Tensor, X: Tensor) -> Tensor:
        return self.base._apply(theta, X)

    def _channels(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """f ``... x S x n x c`` of every draw, and psi ``S x 1 x R`` beside it."""
        f = self._apply_each(self.theta.flatten(0, 1), X).movedim(0, -3)
        return f, self.psi.flatten(0, 1).unsqueeze(-2)

    def _predict(self, X: Tensor, noise: bool) -> Posterior:
        return self._of_draws(*self._channels(X), self.log_weights, noise)

    def _condition(self, X: Tensor, Y: Tensor, noise_variance: Tensor | None) -> EmpiricalProcess:
        if self.likelihood is None:
            raise UnsupportedError("EmpiricalProcess.condition: no likelihood, so no weights; fit the prior first")
        f, psi = self._channels(X)
        known = None if noise_variance is None else noise_variance.unsqueeze(-3)
        gain = self.likelihood.log_prob(Y.unsqueeze(-3), f, psi, known).sum(-1)
        old = 0.0 if self.log_weights is None else self.log_weights
        conditioned = replace(self, log_weights=(old + gain).log_softmax(-1))
        smallest = conditioned.ess.min().item() if gain.numel() else math.inf
        if smallest < min(MIN_ESS, self.num_draws):
            warnings.warn(
                f"EmpiricalProcess.condition: the weights rest on {smallest:.1f} of {self.num_draws} draws "
                "(effective sample size); fit again on all data",
                DegenerateWeightsWarning,
                stacklevel=user_level(),
            )
        return conditioned
