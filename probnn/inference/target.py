"""The joint log density that every method of inference works on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..likelihoods import Likelihood
from ..priors.random_scales import RandomScales
from ..process import BayesianNetwork, ParametricProcess


@dataclass(frozen=True, eq=False)
class Target:
    r"""The joint log density of z = (theta, psi) given data,

    .. math:: \log p(z) = \log p(\theta) + \log p(\psi) + \frac1T \sum_i \log p(y_i \mid f_\theta(x_i), \psi),

    T = 1 unless the likelihood is tempered.

    Leading dimensions of z are chains. Data may lead too and broadcast against them: Y of
    ``R x 1 x n x m`` with coordinates ``R x C x size`` is R data sets with C chains each.

    Args:
        prior: The process theta belongs to.
        likelihood: The law of the outcomes, with parameters psi.
        X: Inputs ``... x n x d``.
        Y: Outcomes ``... x n x m``.
        noise_variance: Known noise variances, like Y.
        temperature: T. A batch of b rows out of n stands for all of them with T b / n.

    Example:
        >>> import torch, probnn
        >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=()), probnn.priors.NormalWeights())
        >>> target = Target(prior, probnn.likelihoods.Gaussian(noise=1.0), torch.ones(1, 1), torch.zeros(1, 1))
        >>> target.log_prob(torch.zeros(2)).round(decimals=3)  # three standard normals at 0
        tensor(-2.7570)
    """

    prior: ParametricProcess
    likelihood: Likelihood
    X: Tensor
    Y: Tensor
    noise_variance: Tensor | None = None
    temperature: float = 1.0

    @property
    def num_theta(self) -> int:
        """Number of coordinates in front of psi: those of theta, or of what is left of it."""
        return self.prior.num_parameters

    @property
    def size(self) -> int:
        """Number of coordinates, theta and psi together."""
        return self.num_theta + self.likelihood.num_parameters

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z ``... x size`` as theta ``... x num_theta`` and psi ``... x R``."""
        return z[..., : self.num_theta], z[..., self.num_theta :]

    def restrict(self, theta: Tensor) -> Tensor:
        """The coordinates of theta ``... x P`` that are sampled: all of them."""
        return theta

    def complete(self, z: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """theta ``... x P`` and psi of z; what was integrated out is drawn."""
        return self.split(z)

    def pool(self, values: Tensor) -> Tensor:
        """Average ``... x size`` over exchangeable coordinates of theta; psi have none."""
        theta, psi = self.split(values)
        return torch.cat([self.prior.layout.pool(theta), psi], -1)

    def spread_variances(self, variances: Tensor) -> Tensor:
        """Variances of the coordinates ``... x size``, as of those that a fit to any data has."""
        return variances

    def gather_variances(self, variances: Tensor) -> Tensor:
        """The inverse of :meth:`spread_variances`, for a target that may have other data."""
        return variances

    def log_prob(self, z: Tensor) -> Tensor:
        """The joint log density of z ``... x size``: ``...``; differentiable."""
        theta, psi = self.split(z)
        f = self.prior._apply(theta, self.X)
        fit = self.likelihood.log_prob(self.Y, f, psi.unsqueeze(-2), self.noise_variance).sum(-1)
        return self.prior._log_prob(theta) + self.likelihood.log_prior(psi) + fit / self.temperature

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`log_prob` and its gradient, outside of autograd.

        The chain rule over the parts' own gradients, closed forms where they have them.
        """
        theta, psi = self.split(z)
        f, pullback = self.prior._pullback(theta, self.X)
        fit, df, dpsi = self.likelihood.log_prob_and_grad(self.Y, f, psi.unsqueeze(-2), self.noise_variance)
        if self.temperature != 1:
            fit, df, dpsi = (part / self.temperature for part in (fit, df, dpsi))
        value, dtheta = self.prior._log_prob_and_grad(theta)
        dtheta = dtheta + pullback(df)
        if psi.shape[-1] == 0:
            return value + fit, dtheta
        of_psi, dprior = self._log_prior_and_grad(psi)
        return value + of_psi + fit, torch.cat([dtheta, dprior + dpsi.squeeze(-2)], -1)

    def refresh(self, z: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """z with the scales of the prior drawn from their law given the weights; None where that law is unknown.

        The function stays what it is, so this leaves every posterior invariant, tempered ones too; see
        :meth:`probnn.priors.InverseGammaWeights.gibbs`.
        """
        weights, theta = random_scales(self.prior), z[..., : self.num_theta]
        if weights is None:
            return None
        layout = self.prior.network.layout  # type: ignore[attr-defined]
        return torch.cat([weights.gibbs(layout, theta, generator), z[..., self.num_theta :]], -1)

    def _log_prior_and_grad(self, psi: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = psi.detach().requires_grad_(True)
            value = self.likelihood.log_prior(leaf)
            return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    def start(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Prior draws of theta with psi at its prior median, ``shape x size``."""
        theta = self.restrict(self.prior._sample_parameters(torch.Size(shape), generator))
        psi = self.likelihood.prior_median(dtype=theta.dtype, device=theta.device)
        return torch.cat([theta, psi.expand(*shape, -1)], -1)


def random_scales(prior: ParametricProcess) -> RandomScales | None:
    """The prior of a network's weights, where the law of its scales given the weights is known."""
    weights = prior.weight_prior if isinstance(prior, BayesianNetwork) else None
    known = isinstance(weights, RandomScales) and weights.has_gibbs
    return weights if known else None
