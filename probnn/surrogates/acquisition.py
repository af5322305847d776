"""Information acquisitions for draws, where BoTorch's demand a Gaussian posterior."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.sampling.qmc import NormalQMCEngine
from botorch.utils.transforms import concatenate_pending_points, t_batch_mode_transform
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError, ShapeError, UnsupportedError
from ..predictive import DrawsPosterior, DrawsSampler


class _Information(AcquisitionFunction):
    r"""Mutual information of noisy outcomes y at X and a label L(s) of the drawn function s.

    .. math:: I(y; L) = E\Big[\log p(y \mid L) - \log p(y)\Big], \quad
        p(y) = \sum_s w_s N(y; f_s(X), \sigma_s^2(X)), \quad
        p(y \mid l) \propto \sum_{s: L(s) = l} w_s N(y; f_s(X), \sigma_s^2(X))

    The expectation is over pairs (s, y): draws chosen systematically, noise by quasi-Monte Carlo, both fixed
    by the seed. Pairing the two terms keeps every one of them below :math:`-\log p(L)`, as it is in truth.
    """

    def __init__(
        self,
        model: Model,
        *,
        posterior_transform: PosteriorTransform | None = None,
        X_pending: Tensor | None = None,
        num_samples: int = 256,
        seed: int = 0,
    ) -> None:
        where = type(self).__name__
        validation.positive_int(where, "num_samples", num_samples)
        super().__init__(model=model)
        self.posterior_transform = posterior_transform
        self.num_samples, self.seed = num_samples, rnd.check_seed(where, seed)
        self._sampler = DrawsSampler(torch.Size([num_samples]), seed=seed)
        self._noise: dict[int, Tensor] = {}
        self.set_X_pending(X_pending)

    @concatenate_pending_points
    @t_batch_mode_transform()
    def forward(self, X: Tensor) -> Tensor:
        """The information in nats, ``b``, of observing X ``b x q x d`` (and the pending points) together."""
        posterior = self._draws(X, observation_noise=True)
        noise: Any = posterior.noise_std
        f, scale = posterior.values.flatten(-2), noise.expand(posterior.values.shape).flatten(-2)  # b x S x D, D = q m
        index = self._chosen(posterior)
        eps = self._normal(f.shape[-1]).to(f)
        own = scale.index_select(-2, index)
        y = f.index_select(-2, index) + own * eps
        # Column by column: all at once would hold N x S x D numbers for the same sums.
        log_joint = posterior.log_weights.expand(self.num_samples, -1)
        for j in range(f.shape[-1]):
            log_joint = log_joint + _log_density(*(t[..., j] for t in (y, own, f, scale)))
        given = self._log_conditional(log_joint, posterior.log_weights, index, eps, own)
        return (given - log_joint.logsumexp(-1)).mean(-1)

    @abstractmethod
    def _log_conditional(self, log_joint: Tensor, log_w: Tensor, index: Tensor, eps: Tensor, own: Tensor) -> Tensor:
        """log p(y | L(s)) of every sample, ``b x N``, up to the constant of the normal density."""

    def _draws(self, X: Tensor, observation_noise: bool) -> DrawsPosterior:
        posterior = self.model.posterior(
            X, observation_noise=observation_noise, posterior_transform=self.posterior_transform
        )
        where = type(self).__name__
        if not isinstance(posterior, DrawsPosterior):
            raise UnsupportedError(
                f"{where}: needs a posterior of draws, got a {type(posterior).__name__}; for Gaussian posteriors use "
                "BoTorch's qMaxValueEntropy or qNegIntegratedPosteriorVariance"
            )
        if posterior.log_weights.ndim > 1:
            raise UnsupportedError(
                f"{where}: the model is a batch of models of shape {tuple(posterior.log_weights.shape[:-1])}; "
                "use the model before it was conditioned on batches of data"
            )
        return posterior

    def _chosen(self, posterior: DrawsPosterior) -> Tensor:
        """The draws of the N samples."""
        S = posterior.values.shape[-3]
        numbers = torch.arange(S, dtype=posterior.dtype, device=posterior.device).reshape(S, 1, 1)
        draws = DrawsPosterior(numbers, posterior.log_weights.detach(), salt=posterior.salt)
        return self._sampler(draws).flatten().round().long()

    def _normal(self, D: int) -> Tensor:
        if D not in self._noise:
            engine = NormalQMCEngine(D, seed=self.seed)
            self._noise[D] = engine.draw(self.num_samples, dtype=torch.float64)
        return self._noise[D]


def _log_density(y: Tensor, own: Tensor, f: Tensor, scale: Tensor) -> Tensor:
    """log p(y | f_s), ``b x N x S``, up to the constant of the normal density.

    The measure is Lebesgue's and, beside it, the counting measure on point masses: what was drawn from a point mass
    has the probability one there under draws with the same point mass, and zero under all others, and what was drawn
    from a normal has the density zero under every point mass.

    Args:
        y: Outcomes ``b x N``.
        own: Standard deviations they were drawn with.
        f: Means of the draws, ``b x S``.
        scale: Standard deviations of the draws.
    """
    y, own, f, scale = y.unsqueeze(-1), own.unsqueeze(-1), f.unsqueeze(-2), scale.unsqueeze(-2)
    if bool((scale > 0).all()):
        return -0.5 * ((y - f) / scale).square() - scale.log()
    normal = torch.where(scale > 0, scale, 1.0)
    density = -0.5 * ((y - f) / normal).square() - normal.log()
    both = (own == 0) & (scale == 0)
    density = density.masked_fill((own == 0) ^ (scale == 0), -math.inf)
    return density.masked_fill(both & (y != f), -math.inf).masked_fill(both & (y == f), 0.0)


class ExpectedInformationGain(_Information):
    r"""Expected information gain about the function (BALD), for draws.

    The mutual information of noisy outcomes at X and the drawn function (Lindley, 1956; Houlsby, Huszár,
    Ghahramani and Lengyel, 2011, arXiv:1112.5745; for several points Kirsch, van Amersfoort and Gal, 2019,
    arXiv:1906.08158),

    .. math:: I(y; s) = H\Big[\sum_s w_s N(f_s(X), \sigma_s^2)\Big] - \sum_s w_s H\big[N(f_s(X), \sigma_s^2)\big].

    At most the entropy of the weights: with S draws the value says nothing beyond :math:`\log S`. Outcomes without
    noise (a class of probability one) tell all draws apart that differ there, and are worth the entropy of the
    groups of equal draws, the limit of little noise: a flat function, as far as no two draws agree.

    Args:
        model: A model of draws, such as a `ProcessModel` of a parametric process; any number of outcomes.
        posterior_transform: BoTorch's scalarisation of several outcomes, if only that is observed.
        X_pending: Points being evaluated, ``n' x d``; their outcomes count as observed too.
        num_samples: Number N of samples of the outer expectation.
        seed: Seed of the samples; values are deterministic given it.

    Example:
        >>> import torch, probnn
        >>> net = probnn.MLP(input_dim=2, hidden=(8,))
        >>> prior = probnn.BayesianNetwork(net, probnn.priors.NormalWeights())
        >>> X, Y = torch.zeros(0, 2).double(), torch.zeros(0, 1).double()  # no data: draws of the prior
        >>> posterior = probnn.HMC().fit(prior, probnn.likelihoods.Gaussian(0.1), X, Y)
        >>> gain = ExpectedInformationGain(probnn.ProcessModel(posterior))
        >>> bool(gain(torch.ones(1, 2).double()) > 0)
        True
    """

    def _log_conditional(self, log_joint: Tensor, log_w: Tensor, index: Tensor, eps: Tensor, own: Tensor) -> Tensor:
        return torch.where(own > 0, -0.5 * eps.square() - torch.where(own > 0, own, 1.0).log(), 0.0).sum(-1)


class MaxValueEntropy(_Information):
    r"""Max-value entropy search for draws.

    The mutual information of noisy outcomes at X and the best value :math:`y^* = \max_x f(x)` (Wang and Jegelka,
    2017, arXiv:1703.01968). Every draw has its own best value over the candidate set; K bins of equal weight make it
    a discrete variable, and conditioning on it is a choice among draws: no Gaussian is needed, and the joint law of
    :math:`y` and :math:`y^*` is kept. At most :math:`\log K`. With S / K draws a bin there is an upward bias of
    about the information K random bins would seem to carry: keep S / K above some 20.

    Args:
        model: A model of draws, such as a `ProcessModel` of a parametric process, with one outcome (or
            `posterior_transform`).
        candidate_set: Points ``n x d`` over which functions are maximised, for instance 500 or more Sobol points of
            the box.
        num_bins: Number K of bins.
        maximize: False: the best value is the smallest.
        posterior_transform: BoTorch's scalarisation of several outcomes.
        X_pending: Points being evaluated, ``n' x d``; their outcomes count as observed too.
        num_samples: Number N of samples of the outer expectation.
        seed: Seed of the samples; values are deterministic given it.

    Example:
        >>> import torch, probnn
        >>> net = probnn.MLP(input_dim=2, hidden=(8,))
        >>> prior = probnn.BayesianNetwork(net, probnn.priors.NormalWeights())
        >>> X, Y = torch.zeros(0, 2).double(), torch.zeros(0, 1).double()  # no data: draws of the prior
        >>> posterior = probnn.HMC().fit(prior, probnn.likelihoods.Gaussian(0.1), X, Y)
        >>> box = torch.rand(100, 2, generator=torch.Generator().manual_seed(0)).double()
        >>> mes = MaxValueEntropy(probnn.ProcessModel(posterior), box)
        >>> bool(mes(torch.ones(1, 2).double()) > 0)
        True
    """

    def __init__(
        self,
        model: Model,
        candidate_set: Tensor,
        *,
        num_bins: int = 10,
        maximize: bool = True,
        posterior_transform: PosteriorTransform | None = None,
        X_pending: Tensor | None = None,
        num_samples: int = 256,
        seed: int = 0,
    ) -> None:
        validation.positive_int("MaxValueEntropy", "num_bins", num_bins, 2)
        super().__init__(
            model, posterior_transform=posterior_transform, X_pending=X_pending, num_samples=num_samples, seed=seed
        )
        if not torch.is_tensor(candidate_set) or candidate_set.ndim != 2 or candidate_set.shape[0] == 0:
            got = tuple(candidate_set.shape) if torch.is_tensor(candidate_set) else type(candidate_set).__name__
            raise ShapeError(f"MaxValueEntropy: candidate_set must have shape (n, d) with n >= 1, got {got}")
        with torch.no_grad():
            posterior = self._draws(candidate_set, observation_noise=False)
            if posterior.event_shape[-1] != 1:
                raise DomainError(
                    f"MaxValueEntropy: needs one outcome, the model has {posterior.event_shape[-1]}; give a "
                    "ScalarizedPosteriorTransform"
                )
            values = posterior.values.squeeze(-1)
            best = values.amax(-1) if maximize else -values.amin(-1)
            order = best.argsort()
            weights = posterior.weights[order].double()
            middle = weights.cumsum(0) - 0.5 * weights
            bins = torch.empty_like(order)
            bins[order] = (middle * num_bins).long().clamp_max(num_bins - 1)
        self.register_buffer("best_values", best if maximize else -best)
        self.register_buffer("bins", bins)

    def _log_conditional(self, log_joint: Tensor, log_w: Tensor, index: Tensor, eps: Tensor, own: Tensor) -> Tensor:
        same = self.bins[index].unsqueeze(-1) == self.bins  # N x S
        log_bin = log_w.expand(len(index), -1).masked_fill(~same, -math.inf).logsumexp(-1)
        return log_joint.masked_fill(~same, -math.inf).logsumexp(-1) - log_bin
