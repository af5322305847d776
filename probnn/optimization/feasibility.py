"""Where experiments succeed: a network that learns from failures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import random as rnd
from ..inference import GaussianWeightProcess, Laplace
from ..likelihoods import Bernoulli
from ..networks import Block, Layout, Network
from ..priors import NormalWeights
from ..process import BayesianNetwork
from .space import Space
from .trials import Trial

MIN_FAILURES, MIN_SUCCESSES = 2, 2
UNITS = 300
# Scales of the hidden units on [-1, 1]^d, and of the logits: experiments mostly fail for a reason, not by chance.
_WEIGHT, _BIAS, _LOGIT, _OFFSET = 5.0, 2.5, 6.0, 1.0


@dataclass(frozen=True, eq=False)
class RandomUnits(Network):
    r"""A network whose hidden tanh units are drawn once and whose last layer is learned.

    :math:`f(x) = w^\top \tanh(W x + b) + c`; theta is (w, c). The posterior of a model that is linear in theta
    has one mode, where that of a whole network, with few zeros and ones to go by, has a mode at the constant
    function. With many units the prior is nearly the Gaussian process of the infinitely wide network.

    Args:
        weight: W, ``H x d``.
        bias: b, of length H.
    """

    weight: Tensor
    bias: Tensor

    @property
    def input_dim(self) -> int:  # type: ignore[override]
        return self.weight.shape[1]

    output_dim = 1

    @property
    def layout(self) -> Layout:
        """w, exchangeable, and c."""
        H = self.weight.shape[0]
        return Layout((Block("last.weight", (1, H), H, (1,), "weight"), Block("last.bias", (1,), H, (), "bias")))

    def _stacked(self, params: Tensor, X: Tensor) -> Tensor:
        units = torch.tanh(X @ self.weight.mT + self.bias)
        return units @ params[:, :-1].unsqueeze(-1) + params[:, -1:].unsqueeze(-1)


@dataclass(frozen=True, eq=False)
class FeasibilityModel:
    r"""The probability that an experiment succeeds, :math:`p(x) = E[\sigma(f(x))]`.

    f is a Bayesian network (:class:`RandomUnits`) with a Bernoulli likelihood (1: complete, 0: failed), inferred by
    Laplace's method; with its predictive :math:`f(x) \sim N(m, v)`,

    .. math:: p(x) \approx \Phi\!\left(\frac{m}{\sqrt{8/\pi + v}}\right),

    the probit in place of the logistic function (MacKay, 1992; p within .02 of the integral, and smooth in x). With
    few trials p is drawn towards a half. Its logarithm joins that of the improvement; see
    :class:`probnn.optimization.acquisition.OverSpace`.

    Args:
        process: The posterior of f.

    Example:
        >>> import torch
        >>> from probnn.optimization import Real, Space, Trial
        >>> space = Space(x=Real(0, 1))
        >>> trials = [Trial(i, {"x": i / 9}, "user", "failed" if i > 5 else "complete") for i in range(10)]
        >>> model = FeasibilityModel.fit(trials, space)
        >>> p = model.probability(torch.tensor([[0.1], [0.9]], dtype=torch.double))
        >>> bool(p[0] > 0.7), bool(p[1] < 0.3)
        (True, True)
    """

    process: GaussianWeightProcess

    @classmethod
    def applies(cls, trials: Sequence[Trial]) -> bool:
        """Whether there is enough to learn from: two failures and two successes."""
        status = [t.status for t in trials]
        return status.count("failed") >= MIN_FAILURES and status.count("complete") >= MIN_SUCCESSES

    @classmethod
    def fit(cls, trials: Sequence[Trial], space: Space, *, seed: int = 0) -> FeasibilityModel:
        """Learn from complete and failed trials; others say nothing.

        Args:
            trials: The trials.
            space: Their space.
            seed: Seed of the inference.

        Returns:
            The model.
        """
        rows = [t for t in trials if t.status in ("complete", "failed")]
        X = torch.stack([space.encode({name: t.parameters[name] for name in space.free}) for t in rows])
        Y = torch.tensor([[float(t.status == "complete")] for t in rows], dtype=torch.double)
        g, d = rnd.generator_from(seed), space.num_features
        weight = _WEIGHT / math.sqrt(d) * rnd.normal((UNITS, d), generator=g, dtype=torch.double)
        network = RandomUnits(weight, _BIAS * rnd.normal((UNITS,), generator=g, dtype=torch.double))
        prior = BayesianNetwork(network, NormalWeights(_LOGIT, _OFFSET), dtype=torch.double)
        method = Laplace(structure="full", num_starts=1, steps=100)
        return cls(method.fit(prior, Bernoulli(), 2 * X - 1, Y, seed=seed))  # type: ignore[arg-type]

    def probability(self, X: Tensor) -> Tensor:
        """Of success at features ``... x D``: ``...``; differentiable."""
        return self.log_probability(X).exp()

    def log_probability(self, X: Tensor) -> Tensor:
        """Its logarithm: that of the probit, finite where p underflows.

        Where p is tiny it is lower than that of the logistic function's mean, whose tail is exponential.
        """
        mean, covariance = self.process._moments((2 * X - 1).unsqueeze(-2))
        mean, variance = mean[..., 0, 0], covariance[..., 0, 0]
        return torch.special.log_ndtr(mean / (8 / torch.pi + variance).sqrt())
