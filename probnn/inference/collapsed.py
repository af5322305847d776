"""The posterior of a network with its last layer integrated out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .. import random as rnd
from ..errors import UnsupportedError
from ..likelihoods import Gaussian
from ..networks import MLP, Layout
from ..networks.mlp import ACTIVATIONS
from ..priors.hierarchical import HierarchicalWeights
from ..priors.inverse_gamma import InverseGammaWeights
from ..priors.random_scales import RandomScales
from ..priors.weights import NormalWeights
from ..process import BayesianNetwork
from .target import Target, random_scales

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

    (with a temperature T, :math:`N(y; f, D)^{1/T}` is proportional to :math:`N(y; f, T D)`, so D stands for T D)
    worked out on the smaller side of A and of :math:`B = I + \Phi^\top D^{-1} \Phi`, for which
    :math:`A^{-1} = D^{-1} - D^{-1} \Phi B^{-1} \Phi^\top D^{-1}`. The stiffest directions of the joint
    density are gone, so trajectories need fewer leapfrog steps, and a small noise is no trap: the density
    of the rest stays smooth where theta given the noise is as narrow as the noise itself.
    :meth:`complete` draws the last layer from its posterior given the rest, so that draws follow the
    joint posterior exactly.

    With fewer rows than inputs (one-hot categories, say) the function at the rows depends on the first layer's
    weights along the r directions that the rows span alone. Their prior is normal with one scale, the
    same along any axes, so across those directions the posterior is the prior, independent of everything
    else: the weights along an orthonormal `basis` of the span are sampled, and :meth:`complete` draws the others.

    Coordinates are those of theta without the last layer's weights and biases, the first layer's weights
    along the basis where there is one, then psi.
    """

    # What every evaluation needs, worked out once.
    hidden: MLP | None = field(init=False)  # to the last hidden units, before their activation
    basis: Tensor | None = field(init=False)  # d x r, of what the rows span; None: all inputs as they are
    inputs: Tensor = field(init=False)  # X along the basis
    layout: Layout = field(init=False)  # of the network: the first layer's weights along the basis, an empty last layer
    kept: Layout = field(init=False)  # of the coordinates: that of theta over `layout`
    index: Tensor = field(init=False)  # in theta, of what is left without the last layer
    last: slice = field(init=False)

    def __post_init__(self) -> None:
        network, weights = self._check()
        basis = _span(self.X) if network.hidden else None
        inputs = self.X if basis is None else self.X @ basis
        blocks, hidden = list(network.layout.blocks), None
        last = slice(network.layout.size - blocks[-2].size - blocks[-1].size, network.layout.size)
        # Blocks of no coordinates keep the count of the blocks, and so their scales, as it is.
        blocks[-2:] = [replace(block, shape=(0, *block.shape[1:])) for block in blocks[-2:]]
        if network.hidden:
            *below, width = network.hidden
            blocks[0] = replace(blocks[0], shape=(network.hidden[0], inputs.shape[-1]))
            hidden = MLP(
                input_dim=inputs.shape[-1], hidden=tuple(below), output_dim=width, activation=network.activation
            )
        layout = Layout(tuple(blocks))
        index = torch.cat([torch.arange(last.start), torch.arange(last.stop, self.prior.layout.size)])
        made = {"hidden": hidden, "basis": basis, "inputs": inputs, "layout": layout, "kept": weights.layout(layout)}
        for name, value in {**made, "index": index.to(self.X.device), "last": last}.items():
            object.__setattr__(self, name, value)

    def _check(self) -> tuple[MLP, NormalWeights | RandomScales]:
        where = "the last layer integrated out (HMC's collapse_last_layer)"
        prior = self.prior
        if not isinstance(prior, BayesianNetwork) or type(prior.network) is not MLP:
            raise UnsupportedError(f"{where}: needs a probnn.BayesianNetwork over a probnn.MLP, got {prior!r}")
        if type(prior.weight_prior) not in (NormalWeights, HierarchicalWeights, InverseGammaWeights):
            raise UnsupportedError(
                f"{where}: the last layer must be Gaussian given its scales (NormalWeights, HierarchicalWeights, "
                f"InverseGammaWeights), got {type(prior.weight_prior).__name__}"
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
        rest = theta[..., self.index]
        if self.basis is None:
            return rest
        return self._with_first(rest, self._first(rest, len(self.basis)) @ self.basis)

    def spread_variances(self, variances: Tensor) -> Tensor:
        r"""Of every input, :math:`\sum_k V_{jk}^2 m_k` of the basis V, and the prior's across it."""
        if self.basis is None:
            return variances
        squares = self.basis.square()
        across = self._first_variance(variances) * (1 - squares.sum(-1))
        first = self._first(variances, squares.shape[-1]) @ squares.mT + across
        return self._with_first(variances, first, squares.shape[-1])

    def gather_variances(self, variances: Tensor) -> Tensor:
        r"""Of every direction of the basis V, :math:`\sum_j V_{jk}^2 m_j`."""
        if self.basis is None:
            return variances
        squares = self.basis.square()
        return self._with_first(variances, self._first(variances, len(squares)) @ squares)

    def log_prob(self, z: Tensor) -> Tensor:
        raise UnsupportedError("CollapsedTarget.log_prob: only value_and_grad is written, in closed form")

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        T = self.temperature
        with torch.no_grad():
            rest, psi = self.split(z)
            phi, back = self._features(rest)
            variance = T * self._variance(psi)
            inferred = psi.shape[-1] > 0 and self.noise_variance is None
            fit, dphi, dvariance = _marginal(self.Y, phi, variance, of_noise=inferred)
            if T != 1:
                fit = fit + self._tempering(variance / T)
            value, drest = self._weights.log_prob_and_grad(self.layout, rest)
            value, drest = value + fit, drest + back(dphi)
            if psi.shape[-1] == 0:
                return value, drest
        of_prior, dpsi = self._log_prior_and_grad(psi)
        if dvariance is None:  # the noise is known, and psi by its prior alone
            return value + of_prior, torch.cat([drest, dpsi], -1)
        # Of the logarithm of the noise; tempering adds 1 - 1/T for every outcome.
        dnoise = (2 * variance * dvariance + (1 - 1 / T)).sum(-2)
        dnoise = dnoise.sum(-1, keepdim=True) if psi.shape[-1] == 1 else dnoise
        return value + of_prior, torch.cat([drest, dpsi + dnoise], -1)

    def refresh(self, z: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """z with the scales of the hidden layers drawn given their weights; those of the last layer stay.

        The last layer's weights are not there to tell about their scales. Of a first layer along a basis
        the weights that are there tell, as those across it are integrated out.
        """
        rest, psi = self.split(z)
        if random_scales(self.prior) is None or self.hidden is None:
            return None
        new = self._weights.gibbs(self.layout, rest, generator)  # type: ignore[union-attr]
        return torch.cat([new[..., :-2], rest[..., -2:], psi], -1)

    def _tempering(self, variance: Tensor) -> Tensor:
        r"""The log of what :math:`\prod N(y; f, v)^{1/T}` is more than :math:`\prod N(y; f, T v)`."""
        each = 0.5 * (_LOG_2PI + (self.temperature * variance).log() - (_LOG_2PI + variance.log()) / self.temperature)
        return each.expand(*each.shape[:-2], *self.Y.shape[-2:]).sum((-1, -2))

    def complete(self, z: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        r"""theta and psi of z, with the last layer, and weights across the basis, drawn from their posterior given z.

        With prior draws :math:`c_0 \sim N(0, I)` of the whitened coefficients and :math:`e \sim N(0, D)`, the
        :math:`c` of least :math:`\|D^{-1/2}(y - e - \Phi c)\|^2 + \|c - c_0\|^2` is a draw given y (perturb and
        optimise; Papandreou & Yuille 2010). It is found by an orthogonal factorisation: the normal equations lose it
        where the noise is a millionth of the outcomes.
        """
        rest, psi = self.split(z)
        phi, _ = self._features(rest)
        variance = self.temperature * self._variance(psi)
        Y = self.Y.expand(*phi.shape[:-1], self.Y.shape[-1])
        free = rnd.normal((*phi.shape[:-2], phi.shape[-1], Y.shape[-1]), generator=generator, like=phi)
        noise = variance.sqrt() * rnd.normal(Y.shape, generator=generator, like=phi)
        drawn = _nearest(Y - noise, phi, variance, free)
        # Normal weights are their own coordinates; those of hierarchical ones are whitened, as these coefficients are.
        unit = rest.new_ones(2) if self._hierarchical else self._scales(rest)
        weight, bias = drawn[..., :-1, :].mT * unit[0], drawn[..., -1, :] * unit[1]
        if self.basis is not None:
            first = self._first(rest, self.basis.shape[-1])
            across = rnd.normal((*first.shape[:-1], len(self.basis)), generator=generator, like=rest)
            across = self._first_variance(rest).sqrt() * across
            first = across + (first - across @ self.basis) @ self.basis.mT
            rest = self._with_first(rest, first, self.basis.shape[-1])
        theta = rest.new_empty(*rest.shape[:-1], self.prior.num_parameters)
        theta[..., self.index] = rest
        theta[..., self.last] = torch.cat([weight.flatten(-2), bias], -1)
        return theta, psi

    def _first(self, values: Tensor, inputs: int) -> Tensor:
        """The first layer's weights, ``... x units x inputs``."""
        units = self._network.hidden[0]
        return values[..., : units * inputs].unflatten(-1, (units, inputs))

    def _with_first(self, values: Tensor, first: Tensor, inputs: int | None = None) -> Tensor:
        """Other weights of the first layer, in place of those for `inputs` inputs (None: all)."""
        units = self._network.hidden[0]
        size = units * (self._network.input_dim if inputs is None else inputs)
        return torch.cat([first.flatten(-2), values[..., size:]], -1)

    def _first_variance(self, like: Tensor) -> Tensor:
        """The prior's variance of the first layer's coordinates."""
        one = like.new_ones(())
        return one if self._hierarchical else self._weights.block_scales(self.layout, like)[0].square()

    @property
    def _network(self) -> MLP:
        return self.prior.network  # type: ignore[attr-defined]

    @property
    def _weights(self) -> NormalWeights | RandomScales:
        return self.prior.weight_prior  # type: ignore[attr-defined]

    @property
    def _hierarchical(self) -> bool:
        return isinstance(self._weights, RandomScales)

    def _scales(self, rest: Tensor) -> Tensor:
        """Standard deviations of the last layer's weights and biases: of length 2, or ``... x 2`` where random."""
        if isinstance(self._weights, RandomScales):
            return self._weights.sigma(self.layout, rest)[..., -2:]
        return self._weights.block_scales(self.layout, rest)[-2:]

    def _variance(self, psi: Tensor) -> Tensor:
        """Noise variances ``... x (1 or n) x (1 or m)``."""
        if self.noise_variance is not None:
            return self.noise_variance
        return torch.atleast_2d((2 * self.likelihood.log_scale(psi.unsqueeze(-2))).exp())  # type: ignore[attr-defined]

    def _features(self, rest: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Phi ``... x n x p``, and the map from its cotangent to that of the coordinates without psi."""
        weights, of_weights = self._weights.pullback(self.layout, rest)
        scales = self._scales(rest)[..., None, :].expand(*rest.shape[:-1], 1, 2)
        of_weight, of_bias = scales[..., :1], scales[..., 1:]
        if self.hidden is None:
            pre = units = self.X.expand(*rest.shape[:-1], *self.X.shape[-2:])
        else:
            pre, of_hidden = self.hidden.pullback(weights, self.inputs)
            units = ACTIVATIONS[self.hidden.activation][0](pre)
        phi = units.new_empty(*units.shape[:-1], units.shape[-1] + 1)
        torch.mul(units, of_weight, out=phi[..., :-1])
        phi[..., -1:] = of_bias

        def back(dphi: Tensor) -> Tensor:
            dweights = weights  # of a linear model: nothing
            if self.hidden is not None:
                pull = ACTIVATIONS[self.hidden.activation][1]
                dweights = of_hidden(pull(of_weight * dphi[..., :-1], pre, units))
            drest = of_weights(dweights)
            if self._hierarchical:
                products = (dphi * phi).sum(-2)  # Phi is proportional to its scales: d/d(log scale)
                drest[..., -2] += products[..., :-1].sum(-1)
                drest[..., -1] += products[..., -1]
            return drest

        return phi, back


def _span(X: Tensor) -> Tensor | None:
    """An orthonormal basis ``d x r`` of what the rows span, up to rounding; None if they are as many as the inputs."""
    if X.ndim != 2 or not 0 < X.shape[0] < X.shape[1]:
        return None
    _, size, directions = torch.linalg.svd(X, full_matrices=False)
    rank = max(1, int((size > size[0] * X.shape[1] * torch.finfo(X.dtype).eps).sum()))
    return directions[:rank].mT.contiguous()


def _nearest(y: Tensor, phi: Tensor, variance: Tensor, centre: Tensor) -> Tensor:
    """The c ``... x p x m`` of least ``|(y - Phi c) / sqrt(v)|^2 + |c - centre|^2``; arguments as of `_solve`."""
    (p, m), k = centre.shape[-2:], variance.shape[-1]
    root = variance.mT.unsqueeze(-1).sqrt()  # ... x k x (1 or n) x 1
    unit = torch.eye(p, dtype=phi.dtype, device=phi.device)
    scaled = phi.unsqueeze(-3) / root
    stacked = torch.cat([scaled, unit.expand(*scaled.shape[:-2], p, p)], -2)
    if k == 1:
        right = torch.cat([y.unsqueeze(-3) / root, centre.unsqueeze(-3)], -2)
    else:
        right = torch.cat([y.mT.unsqueeze(-1) / root, centre.mT.unsqueeze(-1)], -2)
    q, r = torch.linalg.qr(stacked)
    c = torch.linalg.solve_triangular(r, q.mT @ right, upper=True)  # ... x k x p x (m or 1)
    return c.reshape(*c.shape[:-3], p, m) if k == 1 else c.squeeze(-1).mT


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
        # A noise common to the rows is divided out of what is p x p: passes over n x p are what remains to save.
        common = v.shape[-2] == 1
        scaled = phi if common else phi / v
        B = phi.mT @ scaled
        B = B / v if common else B
        B.diagonal(dim1=-2, dim2=-1).add_(1.0)
        root, info = torch.linalg.cholesky_ex(B)
        # By the inverse: one product of matrices takes half the time of n right-hand sides, and what rounding
        # does to B is as large as what it does to the inverse (measured against an SVD, down to a noise of .003).
        inverse, right = torch.cholesky_inverse(root), scaled.mT @ y
        if common:
            inverse, right = inverse / v, right / v
        beta, weighed = torch.cholesky_solve(right, root), scaled @ inverse
        residual = y - phi @ beta
        alpha = residual / v
        # y . alpha would be a small difference of large numbers where the noise is tiny; these are squares.
        square = (residual * alpha).sum((-1, -2, -3)) + beta.square().sum((-1, -2, -3))
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + v.log().expand(*v.shape[:-2], n, 1).sum((-1, -2))
    alpha = alpha.squeeze(-3) if k == 1 else alpha.squeeze(-1).mT
    return alpha, weighed, torch.where(info > 0, torch.nan, log_det), square


def _marginal(Y: Tensor, phi: Tensor, variance: Tensor, of_noise: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    """``sum_j log N(y_j; 0, A_j)`` with its gradients in Phi, and in every row's noise variance ``... x n x m``."""
    (n, m), k = Y.shape[-2:], variance.shape[-1]
    alpha, weighed, log_det, square = _solve(Y.expand(*phi.shape[:-1], m), phi, variance)
    value = -0.5 * (square + (m // k) * log_det.sum(-1) + n * m * _LOG_2PI)
    weighed_sum = weighed.squeeze(-3) if k == 1 else weighed.sum(-3)
    dphi = torch.baddbmm(
        weighed_sum.reshape(-1, n, phi.shape[-1]),
        alpha.reshape(-1, n, m),
        (alpha.mT @ phi).reshape(-1, m, phi.shape[-1]),
        beta=-(m // k),
    ).reshape(phi.shape)
    if not of_noise:
        return value, dphi, None
    precision = (1 - (weighed * phi.unsqueeze(-3)).sum(-1)).mT / variance  # the diagonal of A^-1, ... x n x k
    return value, dphi, 0.5 * (alpha.square() - precision)
