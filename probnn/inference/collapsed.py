"""The posterior of a network with its last layer integrated out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import random as rnd
from ..errors import UnsupportedError
from ..likelihoods import Gaussian
from ..networks import MLP, Layout
from ..networks.mlp import ACTIVATIONS
from ..priors.hierarchical import HierarchicalWeights
from ..priors.weights import NormalWeights
from ..process import BayesianNetwork
from .target import Target

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class CollapsedTarget(Target):
    r"""The log density of everything but the last layer, which is integrated out.

    Given the hidden units :math:`h_i` of a row (H of them), the scales :math:`\sigma_w, \sigma_b` of the
    last layer and a Gaussian likelihood, every outcome is a linear model with Gaussian
    coefficients: with :math:`\Phi = [\sigma_w h, \sigma_b]` (``n x p``, p = H + 1) and noise variances
    :math:`D = \mathrm{diag}(v)`,

    .. math:: y \sim N(0, A), \quad A = \Phi \Phi^\top + D, \quad
       \frac{\partial \log N}{\partial \Phi} = \alpha \alpha^\top \Phi - A^{-1}\Phi, \quad
       \frac{\partial \log N}{\partial v_i} = \tfrac12 (\alpha_i^2 - A^{-1}_{ii}), \quad \alpha = A^{-1} y,

    worked out on the smaller side of A and of :math:`B = I + \Phi^\top D^{-1} \Phi`, for which
    :math:`A^{-1} = D^{-1} - D^{-1} \Phi B^{-1} \Phi^\top D^{-1}`. The stiffest directions of the joint
    density are gone, so trajectories need fewer leapfrog steps, and a small noise is no trap: the density
    of the rest stays smooth where theta given the noise is as narrow as the noise itself.
    :meth:`complete` draws the last layer from its posterior given the rest, so that draws follow the
    joint posterior exactly.

    Coordinates are those of theta without the last layer's weights and biases, then psi.
    """

    # What every evaluation needs, worked out once.
    hidden: MLP | None = field(init=False)  # to the last hidden units, before their activation
    kept: Layout = field(init=False)
    index: Tensor = field(init=False)  # of the kept coordinates in theta
    last: slice = field(init=False)
    _constant: Tensor = field(init=False)  # takes the last layer's density at zero out again

    def __post_init__(self) -> None:
        network, weights = self._check()
        hidden = None
        if network.hidden:
            *below, width = network.hidden
            hidden = MLP(
                input_dim=network.input_dim, hidden=tuple(below), output_dim=width, activation=network.activation
            )
        blocks = network.layout.blocks
        last = slice(network.layout.size - blocks[-2].size - blocks[-1].size, network.layout.size)
        of_theta = self.prior.layout
        kept = Layout(tuple(b for b in of_theta.blocks if b.name not in (blocks[-2].name, blocks[-1].name)))
        index = torch.cat([torch.arange(last.start), torch.arange(last.stop, of_theta.size)]).to(self.X.device)
        for name, value in (("hidden", hidden), ("kept", kept), ("index", index), ("last", last)):
            object.__setattr__(self, name, value)
        zero = self._full(self.X.new_zeros(kept.size))
        drawn = zero.new_tensor((last.stop - last.start) * 0.5 * _LOG_2PI)
        if not self._hierarchical:
            sizes = torch.tensor([b.size for b in blocks[-2:]], device=self.X.device)
            drawn = drawn + (sizes * self._scales(zero).log()).sum()
        object.__setattr__(self, "_constant", drawn)

    def _check(self) -> tuple[MLP, NormalWeights | HierarchicalWeights]:
        where = "HMC(collapse_last_layer=True)"
        prior = self.prior
        if not isinstance(prior, BayesianNetwork) or type(prior.network) is not MLP:
            raise UnsupportedError(f"{where}: needs a probnn.BayesianNetwork over a probnn.MLP, got {prior!r}")
        if type(prior.weight_prior) not in (NormalWeights, HierarchicalWeights):
            raise UnsupportedError(
                f"{where}: the last layer must be Gaussian given its scales (NormalWeights, HierarchicalWeights), "
                f"got {type(prior.weight_prior).__name__}"
            )
        if type(self.likelihood) is not Gaussian:
            raise UnsupportedError(f"{where}: needs a Gaussian likelihood, got {type(self.likelihood).__name__}")
        if (
            not prior.network.hidden
            and type(prior.weight_prior) is NormalWeights
            and not self.likelihood.num_parameters
        ):
            raise UnsupportedError(
                f"{where}: nothing is left to sample; the posterior of a linear model with known scales and noise is "
                "Gaussian, and probnn.Laplace() gives it exactly"
            )
        return prior.network, prior.weight_prior

    @property
    def num_theta(self) -> int:
        return self.kept.size

    def pool(self, values: Tensor) -> Tensor:
        theta, psi = self.split(values)
        return torch.cat([self.kept.pool(theta), psi], -1)

    def restrict(self, theta: Tensor) -> Tensor:
        return theta[..., self.index]

    def log_prob(self, z: Tensor) -> Tensor:
        raise UnsupportedError("CollapsedTarget.log_prob: only value_and_grad is written, in closed form")

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            rest, psi = self.split(z)
            theta = self._full(rest)
            phi, back = self._features(theta)
            variance = self._variance(psi)
            fit, dphi, dvariance = _marginal(self.Y, phi, variance)
            value, dtheta = self.prior._log_prob_and_grad(theta)
            value = value + self._constant + fit
            drest = (dtheta + back(dphi))[..., self.index]
            if psi.shape[-1] == 0:
                return value, drest
        of_prior, dpsi = self._log_prior_and_grad(psi)
        dnoise = 2 * (variance * dvariance).sum(-2)
        dnoise = dnoise.sum(-1, keepdim=True) if psi.shape[-1] == 1 else dnoise
        return value + of_prior, torch.cat([drest, dpsi + dnoise], -1)

    def complete(self, z: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        r"""theta and psi of z, with the last layer drawn from its posterior given z.

        By Matheron's rule: with prior draws :math:`c_0 \sim N(0, I)` of the whitened coefficients and
        :math:`e \sim N(0, D)`, :math:`c_0 + \Phi^\top A^{-1} (y - \Phi c_0 - e)` is a draw given y.
        """
        rest, psi = self.split(z)
        theta = self._full(rest)
        phi, _ = self._features(theta)
        variance = self._variance(psi)
        Y = self.Y.expand(*phi.shape[:-1], self.Y.shape[-1])
        free = rnd.normal((*phi.shape[:-2], phi.shape[-1], Y.shape[-1]), generator=generator, like=phi)
        noise = variance.sqrt() * rnd.normal(Y.shape, generator=generator, like=phi)
        alpha, _, _, _ = _solve(Y - phi @ free - noise, phi, variance)
        drawn = free + phi.mT @ alpha
        # Normal weights are their own coordinates; those of hierarchical ones are whitened, as these coefficients are.
        unit = theta.new_ones(2) if self._hierarchical else self._scales(theta)
        weight, bias = drawn[..., :-1, :].mT * unit[0], drawn[..., -1, :] * unit[1]
        theta[..., self.last] = torch.cat([weight.flatten(-2), bias], -1)
        return theta, psi

    @property
    def _network(self) -> MLP:
        return self.prior.network  # type: ignore[attr-defined]

    @property
    def _weights(self) -> NormalWeights | HierarchicalWeights:
        return self.prior.weight_prior  # type: ignore[attr-defined]

    @property
    def _hierarchical(self) -> bool:
        return isinstance(self._weights, HierarchicalWeights)

    def _full(self, rest: Tensor) -> Tensor:
        """theta with zeros for the last layer."""
        theta = rest.new_zeros(*rest.shape[:-1], self.prior.num_parameters)
        theta[..., self.index] = rest
        return theta

    def _scales(self, theta: Tensor) -> Tensor:
        """Standard deviations of the last layer's weights and biases: of length 2, or ``... x 2`` where random."""
        layout = self._network.layout
        if isinstance(self._weights, HierarchicalWeights):
            return self._weights.sigma(layout, theta)[..., -2:]
        return self._weights.block_scales(layout, theta)[-2:]

    def _variance(self, psi: Tensor) -> Tensor:
        """Noise variances ``... x (1 or n) x (1 or m)``."""
        if self.noise_variance is not None:
            return self.noise_variance
        return torch.atleast_2d((2 * self.likelihood.log_scale(psi.unsqueeze(-2))).exp())  # type: ignore[attr-defined]

    def _features(self, theta: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Phi ``... x n x p``, and the map from its cotangent to that of theta."""
        weights, of_weights = self._weights.pullback(self._network.layout, theta)
        scales = self._scales(theta)[..., None, :].expand(*theta.shape[:-1], 1, 2)
        of_weight, of_bias = scales[..., :1], scales[..., 1:]
        if self.hidden is None:
            pre = units = self.X.expand(*theta.shape[:-1], *self.X.shape[-2:])
        else:
            pre, of_hidden = self.hidden.pullback(weights[..., : self.last.start], self.X)
            units = ACTIVATIONS[self.hidden.activation][0](pre)
        phi = torch.cat([of_weight * units, of_bias.expand(*units.shape[:-1], 1)], -1)

        def back(dphi: Tensor) -> Tensor:
            dweights = torch.zeros_like(weights)
            if self.hidden is not None:
                pull = ACTIVATIONS[self.hidden.activation][1]
                dweights[..., : self.last.start] = of_hidden(pull(of_weight * dphi[..., :-1], pre, units))
            dtheta = of_weights(dweights)
            if self._hierarchical:
                products = (dphi * phi).sum(-2)  # Phi is proportional to its scales: d/d(log scale)
                dtheta[..., -2] += products[..., :-1].sum(-1)
                dtheta[..., -1] += products[..., -1]
            return dtheta

        return phi, back


def _solve(y: Tensor, phi: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``A^-1 y``, ``A^-1 Phi``, ``log|A|`` and ``tr(y^T A^-1 y)`` for ``A = Phi Phi^T + diag(v)``, on the smaller side.

    Args:
        y: Right-hand sides ``... x n x m``.
        phi: ``... x n x p``.
        variance: v, ``... x (1 or n) x k`` with k = 1 (common to the right-hand sides) or m.

    Returns:
        ``... x n x m``, ``... x k x n x p``, ``... x k`` and ``...``; NaN where A is not positive definite.
    """
    (n, p), m, k = phi.shape[-2:], y.shape[-1], variance.shape[-1]
    v = variance.mT.unsqueeze(-1)  # ... x k x (1 or n) x 1
    phi = phi.unsqueeze(-3).expand(*phi.shape[:-2], k, n, p)
    y = y.unsqueeze(-3) if k == 1 else y.mT.unsqueeze(-1)
    if n <= p:
        A = phi @ phi.mT
        A.diagonal(dim1=-2, dim2=-1).add_(v.squeeze(-1))
        root, info = torch.linalg.cholesky_ex(A)
        alpha, weighed = torch.cholesky_solve(torch.cat([y, phi], -1), root).split((m // k, p), -1)
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        square = (y * alpha).sum((-1, -2, -3))
    else:
        scaled = phi / v
        B = phi.mT @ scaled
        B.diagonal(dim1=-2, dim2=-1).add_(1.0)
        root, info = torch.linalg.cholesky_ex(B)
        solved = torch.cholesky_solve(torch.cat([scaled.mT @ y, scaled.mT], -1), root)
        beta, weighed = solved[..., : m // k], solved[..., m // k :].mT
        residual = y - phi @ beta
        alpha = residual / v
        # y . alpha would be a small difference of large numbers where the noise is tiny; these are squares.
        square = (residual * alpha).sum((-1, -2, -3)) + beta.square().sum((-1, -2, -3))
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + v.log().expand(*v.shape[:-2], n, 1).sum((-1, -2))
    alpha = alpha.squeeze(-3) if k == 1 else alpha.squeeze(-1).mT
    return alpha, weighed, torch.where(info > 0, torch.nan, log_det), square


def _marginal(Y: Tensor, phi: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``sum_j log N(y_j; 0, A_j)`` with its gradients in Phi, and in every row's noise variance ``... x n x m``."""
    (n, m), k = Y.shape[-2:], variance.shape[-1]
    alpha, weighed, log_det, square = _solve(Y.expand(*phi.shape[:-1], m), phi, variance)
    value = -0.5 * (square + (m // k) * log_det.sum(-1) + n * m * _LOG_2PI)
    dphi = alpha @ (alpha.mT @ phi) - (m // k) * weighed.sum(-3)
    precision = (1 - (weighed * phi.unsqueeze(-3)).sum(-1)).mT / variance  # the diagonal of A^-1, ... x n x k
    return value, dphi, 0.5 * (alpha.square() - precision)
