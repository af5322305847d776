"""Processes whose coordinates are Gaussian: what Laplace's method and variational inference return."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError, ShapeError, UnsupportedError
from ..likelihoods import Gaussian, Likelihood
from ..networks import Block, Layout
from ..networks.base import _stack
from ..priors import NormalWeights
from ..priors.flows import WhitenedWeights
from ..process import BayesianNetwork, ParametricProcess, StochasticProcess
from .curvature import CHUNK_BYTES, jacobian_pieces
from .spread import Spread

if TYPE_CHECKING:
    from botorch.posteriors import Posterior


@dataclass(frozen=True, eq=False)
class GaussianWeightProcess(ParametricProcess):
    r"""A process whose coordinates are Gaussian around `loc`, as they are or linearised.

    The covariance of the k random coordinates has the precision :math:`D^{-1}(I + U E U^\top)D^{-1}`:
    D alone for a mean-field fit, and D the prior's standard deviations with U, E what n data added
    in Laplace's method, at most min(k, n c) directions. With ``linearized=True`` the function is

    .. math:: f(x; \theta) = f(x; \theta_0) + J(x)(\theta - \theta_0), \qquad
              J(x) = \partial f(x; \theta)/\partial\theta\,|_{\theta_0},

    a Gaussian process of kernel :math:`J(x)\Sigma J(x')^\top` (Immer et al. 2021, arXiv 2008.08400), and
    `predict` under a Gaussian likelihood is its closed form; otherwise `predict` is over 256 draws.

    With a `support`, theta are the k coordinates listed there, and the others stay at `loc`: its
    density, its layout and `num_parameters` are those of the k.

    Args:
        base: The process whose coordinates are Gaussian.
        loc: Mean of the coordinates of `base`, of length P.
        scale: The diagonal of D, of length k (of the standard deviations, without directions).
        directions: U, ``k x r`` with orthonormal columns; None: r = 0.
        gains: The diagonal of E, of length r.
        support: Indices of the random coordinates, increasing, of length k; None: all of them.
        psi: Parameters of the likelihood, of length R: held there, or a mean.
        psi_scale: Their standard deviations (independent, Gaussian); None: psi is held.
        likelihood: The likelihood of the fit.
        linearized: Use the function linearised in theta.
        anchor: The point theta_0 it is linearised at, of length P; None: at `loc`.
        info: What happened while fitting.

    Raises:
        ShapeError, DomainError: The tensors do not fit together.

    Example:
        >>> import torch, probnn
        >>> base = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=(4,)), probnn.priors.NormalWeights())
        >>> process = GaussianWeightProcess(base, torch.ones(13), torch.full((13,), 0.1), linearized=True)
        >>> tuple(process.predict(torch.zeros(5, 1)).mean.shape), tuple(process.spread.dense().shape)
        ((5, 1), (13, 13))
    """

    base: ParametricProcess
    loc: Tensor
    scale: Tensor
    directions: Tensor | None = None
    gains: Tensor | None = None
    support: Tensor | None = None
    psi: Tensor | None = None
    psi_scale: Tensor | None = None
    likelihood: Likelihood | None = None
    linearized: bool = False
    anchor: Tensor | None = None
    info: Any = None

    def __post_init__(self) -> None:
        P, R = self.base.num_parameters, self.likelihood.num_parameters if self.likelihood else 0
        k = P if self.support is None else self.support.numel()
        r = 0 if self.gains is None else self.gains.numel()
        expected: dict[str, tuple[int, ...]] = {
            "loc": (P,), "scale": (k,), "directions": (k, r), "gains": (r,), "support": (k,), "psi": (R,),
            "psi_scale": (R,), "anchor": (P,),
        }  # fmt: skip
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ShapeError(f"GaussianWeightProcess: {name} must have shape {shape}, got {tuple(value.shape)}")
            if value is not None and name != "support":
                validation.tensor("GaussianWeightProcess", name, value, like=self.loc)
        if (self.directions is None) != (self.gains is None):
            raise DomainError("GaussianWeightProcess: give both directions and gains, or neither")
        if self.psi is None and R:
            raise DomainError(f"GaussianWeightProcess: the likelihood has {R} parameters, so psi is needed")
        for name in ("scale", "psi_scale"):
            if getattr(self, name) is not None:
                validation.positive("GaussianWeightProcess", name, getattr(self, name))
        if self.gains is not None:
            validation.positive("GaussianWeightProcess", "gains", self.gains, allow_zero=True)
        if self.support is not None:
            index = self.support
            if index.dtype != torch.long or not k or index[0] < 0 or index[-1] >= P or (index.diff() <= 0).any():
                raise DomainError(f"GaussianWeightProcess: support must be increasing indices from 0 to {P - 1}")
        object.__setattr__(self, "_layout", _restricted(self.base.layout, self.support))

    @property
    def prior(self) -> StochasticProcess | None:  # type: ignore[override]
        """The prior of the fit."""
        return self.base.prior if self.base.prior is not None else self.base

    @property
    def input_dim(self) -> int:  # type: ignore[override]
        """Number of inputs d."""
        return self.base.input_dim

    @property
    def output_dim(self) -> int:  # type: ignore[override]
        """Number of channels c."""
        return self.base.output_dim

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Precision of the mean."""
        return self.loc.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the mean lives."""
        return self.loc.device

    @property
    def mean(self) -> Tensor:
        """Mean of theta, of length k."""
        return self.loc if self.support is None else self.loc[self.support]

    @property
    def spread(self) -> Spread:
        """Covariance of theta: `spread.dense()` is it in full, ``k x k``."""
        if self.directions is None or self.gains is None:
            return Spread.diagonal(self.scale)
        return Spread(self.scale, self.directions, self.gains)

    @property
    def layout(self) -> Layout:
        """The blocks of theta: those of `base`, or one block ``support`` where it cuts through them."""
        return self._layout  # type: ignore[attr-defined]

    def _sample_parameters(self, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        u = rnd.normal((*shape, self.num_parameters), generator=generator, like=self.loc)
        return self.mean + self.spread.lift(u)

    def _sample_joint(self, shape: torch.Size, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        theta, psi = self._sample_parameters(shape, generator), self.psi_mean.expand(*shape, -1)
        if self.psi_scale is None:
            return theta, psi.clone()
        return theta, psi + self.psi_scale * rnd.normal(psi.shape, generator=generator, like=self.loc)

    def _log_prob(self, theta: Tensor) -> Tensor:
        spread, constant = self.spread, self.num_parameters * math.log(2 * math.pi)
        return -0.5 * (spread.square(theta - self.mean) + spread.log_det() + constant)

    @property
    def psi_mean(self) -> Tensor:
        """psi as a tensor of length R."""
        return self.loc.new_zeros(0) if self.psi is None else self.psi

    @property
    def _origin(self) -> Tensor:
        """The point of linearisation, of length P."""
        return self.loc if self.anchor is None else self.anchor

    def _of_support(self, x: Tensor) -> Tensor:
        return x if self.support is None else x[..., self.support]

    def _apply(self, theta: Tensor, X: Tensor) -> Tensor:
        if self.linearized:
            flat, rows, restore, _ = _stack(theta, X)
            return restore(self._linear(flat, rows)[0])
        if self.support is not None:
            theta = self.loc.expand(*theta.shape[:-1], -1).index_copy(-1, self.support, theta)
        return self.base._apply(theta, X)

    def _pullback(self, theta: Tensor, X: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        if not self.linearized:
            return super()._pullback(theta, X)
        flat, rows, restore, collect = _stack(theta, X)
        with torch.no_grad():
            value, back = self._linear(flat, rows)
        return restore(value), lambda cotangent: back(collect(cotangent)).reshape(theta.shape)

    def _linear(self, theta: Tensor, X: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The linearised function of ``S x k`` at ``1 or S x n x d``: ``S x n x c``, and its transpose."""
        delta = theta - self._of_support(self._origin)
        (S, k), n, c, shared = delta.shape, X.shape[-2], self.output_dim, X.shape[0] == 1
        pieces = list(self._jacobians(X.reshape(-1, X.shape[-1])))

        def back(cotangent: Tensor) -> Tensor:
            if shared:
                parts = [cotangent[:, rows].reshape(S, -1) @ J.reshape(-1, k) for rows, _, J in pieces]
                return sum(parts, delta.new_zeros(S, k))
            parts = [torch.einsum("nc,nck->nk", cotangent.reshape(-1, c)[rows], J) for rows, _, J in pieces]
            return torch.cat([delta.new_zeros(0, k), *parts]).reshape(S, n, k).sum(-2)

        if shared:  # one product for all draws: 25 times faster than a directional derivative each
            values = [f + (delta @ J.reshape(-1, k).mT).reshape(S, -1, c) for _, f, J in pieces]
            return torch.cat([delta.new_zeros(S, 0, c), *values], -2), back
        own = delta.repeat_interleave(n, 0)
        values = [f + torch.einsum("nck,nk->nc", J, own[rows]) for rows, f, J in pieces]
        return torch.cat([delta.new_zeros(0, c), *values]).reshape(S, n, c), back

    def _jacobians(self, X: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        for rows, f, J in jacobian_pieces(self.base, self._origin, X):
            yield rows, f, self._of_support(J)

    def _predict(self, X: Tensor, noise: bool) -> Posterior:
        likelihood = self.likelihood
        closed = likelihood is None or isinstance(likelihood, Gaussian)
        if not (self.linearized and closed and self.psi_scale is None):
            return super()._predict(X, noise)
        mean, root = self._moments(X)
        variance = likelihood.moments(mean, self.psi_mean)[1] if noise and likelihood is not None else None
        return _normal_posterior(mean, root, variance)

    def _moments(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``... x n x c`` of the linearised function and its covariance ``... x n c x n c``.

        Where the covariance is singular, n c > k, its root F ``... x n c x k``, F F' being the covariance.
        """
        (*lead, n, d), c, k = X.shape, self.output_dim, self.num_parameters
        shift, flat = self.mean - self._of_support(self._origin), X.reshape(-1, n, d)
        width = k if n * c > k else n * c
        means, roots = [X.new_zeros(0, n, c)], [X.new_zeros(0, n * c, width)]
        step = max(1, CHUNK_BYTES // max(1, n * c * self.loc.shape[0] * X.element_size()))
        for part in flat.split(step):
            pieces = list(self._jacobians(part.reshape(-1, d)))
            J = torch.cat([X.new_zeros(0, c, k), *(J for _, _, J in pieces)])
            f = torch.cat([X.new_zeros(0, c), *(f for _, f, _ in pieces)])
            means.append((f + J @ shift).reshape(-1, n, c))
            features = self.spread.lower(J).reshape(-1, n * c, k)
            roots.append(features if width < n * c else features @ features.mT)
        return torch.cat(means).reshape(*lead, n, c), torch.cat(roots).reshape(*lead, n * c, width)

    def _condition(self, X: Tensor, Y: Tensor, noise_variance: Tensor | None) -> GaussianWeightProcess:
        """Exact in the linearised model: Gaussian prior, linear function, Gaussian noise."""
        if not self.linearized or not isinstance(self.likelihood, Gaussian) or self.psi_scale is not None:
            return super()._condition(X, Y, noise_variance)  # type: ignore[return-value]
        if X.ndim > 2 or Y.ndim > 2:
            raise UnsupportedError(
                "GaussianWeightProcess.condition: conditions on one data set, not on a batch of shape "
                f"{tuple(torch.broadcast_shapes(X.shape[:-2], Y.shape[:-2]))}; its draws do: "
                "process.draws().condition(...)"
            )
        origin, c, k = self._origin, self.output_dim, self.num_parameters
        pieces = list(self._jacobians(X))
        J = torch.cat([X.new_zeros(0, c, k), *(J for _, _, J in pieces)]).reshape(-1, k)
        f = torch.cat([X.new_zeros(0, c), *(f for _, f, _ in pieces)])
        if noise_variance is None:
            noise_variance = self.likelihood.moments(f, self.psi_mean)[1]
        precision = 1 / noise_variance.reshape(-1, 1)
        residual = (Y - f).reshape(-1) - J @ (self.mean - self._of_support(origin))
        rows = precision.sqrt() * J * self.scale
        spread = Spread.from_rows(self.scale, torch.cat([self.spread.rows(), rows]))
        mean = self.mean + spread.lift(spread.lower((precision * J).mT @ residual))
        loc = mean if self.support is None else self.loc.index_copy(-1, self.support, mean)
        return replace(self, loc=loc, directions=spread.directions, gains=spread.gains, anchor=origin)


def _restricted(layout: Layout, support: Tensor | None) -> Layout:
    """The blocks a support consists of; one block where it holds only parts of some."""
    if support is None:
        return layout
    chosen = torch.zeros(layout.size, dtype=torch.bool)
    chosen[support.cpu()] = True
    whole = [(block, chosen[s]) for block, s in layout.slices()]
    if any(c.any() and not c.all() for _, c in whole):
        return Layout((Block("support", (support.numel(),)),))
    return Layout(tuple(block for block, c in whole if c.any()))


def _normal_posterior(mean: Tensor, covariance: Tensor, noise: Tensor | None) -> Posterior:
    """The normal law of mean ``... x n x m`` and a covariance or, where it has fewer columns, its root."""
    from botorch.posteriors import GPyTorchPosterior
    from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
    from linear_operator.operators import RootLinearOperator, to_linear_operator

    missing = covariance.shape[-2] - covariance.shape[-1]
    if noise is not None:
        full = covariance @ covariance.mT if missing else covariance
        law = to_linear_operator(full + torch.diag_embed(noise.flatten(-2)))
    elif missing:  # padded to the size that base samples have; no factor of a singular matrix is needed
        law = RootLinearOperator(torch.nn.functional.pad(covariance, (0, missing)))
    else:
        law = to_linear_operator(covariance)
    if mean.shape[-1] == 1:
        return GPyTorchPosterior(MultivariateNormal(mean.squeeze(-1), law))
    return GPyTorchPosterior(MultitaskMultivariateNormal(mean, law))


def gaussian_law(prior: ParametricProcess) -> tuple[Tensor, Spread] | None:
    """Mean and covariance of theta where it is exactly Gaussian (normal weights, flows, a Gaussian fit); else None."""
    if isinstance(prior, GaussianWeightProcess):
        return prior.mean, prior.spread
    if isinstance(prior, BayesianNetwork) and type(prior.weight_prior) is NormalWeights:
        scales = prior.weight_prior.scales(prior.network.layout, torch.empty(0, dtype=prior.dtype, device=prior.device))
        return torch.zeros_like(scales), Spread.diagonal(scales.detach())
    if isinstance(prior, BayesianNetwork) and isinstance(prior.weight_prior, WhitenedWeights):
        zero = torch.zeros(prior.num_parameters, dtype=prior.dtype, device=prior.device)
        return zero, Spread.diagonal(torch.ones_like(zero))
    return None
