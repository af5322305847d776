"""What weight priors with random scales share: coordinates, densities, gradients, the Gibbs step."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import random as rnd
from ..errors import UnsupportedError
from ..networks import Block, Layout
from .weights import WeightPrior

_LOG_2, _LOG_2PI = math.log(2), math.log(2 * math.pi)


class RandomScales(WeightPrior):
    r"""Base of normal weights whose blocks have random scales.

    With a given scale :math:`s_k` of block k (fan-in included), theta = (z, u) and
    :math:`w_{ki} = s_k e^{u_k} z_{ki}`, where :math:`z_{ki} \sim N(0, 1)` and the :math:`u_k` are independent. A
    subclass gives :math:`s_k` and the law of u.
    """

    @abstractmethod
    def block_scales(self, network: Layout, like: Tensor) -> Tensor:
        """s of every block of the network, fan-in included, with the dtype and device of `like`."""

    @abstractmethod
    def _scale_law(self, network: Layout, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log density and its derivative at every u ``... x blocks``, Jacobian of u = log(scale) included."""

    @abstractmethod
    def _scale_draws(
        self, network: Layout, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Draws of u, ``shape x blocks``, differentiable in the hyper-parameters."""

    def _gamma(self, network: Layout, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """Shape and rate of the Gamma law of exp(-2u), one a block; None where it has another law."""
        return None

    @property
    def has_gibbs(self) -> bool:
        """Whether the law of the scales given the weights is known: :meth:`gibbs`."""
        return False

    def mean_squares(self, network: Layout, like: Tensor) -> Tensor:
        """E sigma^2 of every block, fan-in included, differentiable in the hyper-parameters; infinite where it is."""
        law = self._gamma(network, like)
        if law is None:
            raise UnsupportedError(f"priors.{type(self).__name__}.mean_squares: not known; write the method")
        a, b = (value.expand(len(network.blocks)) for value in law)
        mean = self.block_scales(network, like).square() * b / torch.where(a > 1, a - 1, 1.0)
        return torch.where(a > 1, mean, math.inf)

    def scale_quantiles(self, network: Layout, p: Tensor) -> Tensor:
        """u of every block where its distribution function is p, ``... x blocks``; likewise differentiable."""
        law = self._gamma(network, p)
        if law is None:
            raise UnsupportedError(f"priors.{type(self).__name__}.scale_quantiles: not known; write the method")
        # exp(-2u) falls with u.
        return 0.5 * (law[1].log() - log_gamma_quantile(law[0].expand(p.shape), 1 - p))

    def moment_orders(self, network: Layout) -> Tensor:
        """:attr:`moment_order`, of every block by itself."""
        like = torch.empty(0, dtype=torch.double)
        law = self._gamma(network, like)
        order = like.new_tensor(self.moment_order) if law is None else 2 * law[0].detach()
        return order.expand(len(network.blocks))

    def layout(self, network: Layout) -> Layout:
        """The network's blocks, holding z, and a last block ``log_scale`` with u of each of them."""
        return Layout((*network.blocks, Block("log_scale", (len(network.blocks),), role="scale")))

    def sample(
        self,
        network: Layout,
        sample_shape: Sequence[int] = (),
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Draw (z, u), ``sample_shape x P``."""
        like = torch.empty(0, dtype=dtype, device=device)
        z = rnd.normal((*sample_shape, network.size), generator=generator, like=like)
        return torch.cat([z, self._scale_draws(network, tuple(sample_shape), like, generator)], -1)

    def log_prob(self, network: Layout, theta: Tensor) -> Tensor:
        """Log density of (z, u) ``... x P``: ``...``."""
        z, u = theta[..., : network.size], theta[..., network.size :]
        of_z = -0.5 * (z.square().sum(-1) + network.size * _LOG_2PI)
        return of_z + self._scale_law(network, u)[0].sum(-1)

    def log_prob_and_grad(self, network: Layout, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Closed form of both."""
        with torch.no_grad():
            z, u = theta[..., : network.size], theta[..., network.size :]
            value, slope = self._scale_law(network, u)
            value = -0.5 * (z.square().sum(-1) + network.size * _LOG_2PI) + value.sum(-1)
            return value, torch.cat([-z, slope], -1)

    def sigma(self, network: Layout, theta: Tensor) -> Tensor:
        """The standard deviation of every block's weights, fan-in included: ``... x blocks``."""
        return theta[..., network.size :].exp() * self.block_scales(network, theta)

    def weights(self, network: Layout, theta: Tensor) -> Tensor:
        """The network's weights of (z, u) ``... x P``: ``... x size``."""
        return theta[..., : network.size] * network.expand(self.sigma(network, theta))

    def pullback(self, network: Layout, theta: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Closed form: dz = sigma dw, and du of a block is the sum of w dw over it."""
        with torch.no_grad():
            sigma = network.expand(self.sigma(network, theta))
            weights = theta[..., : network.size] * sigma

        def back(cotangent: Tensor) -> Tensor:
            products = (weights * cotangent).split([block.size for block in network.blocks], -1)
            return torch.cat([sigma * cotangent, torch.stack([p.sum(-1) for p in products], -1)], -1)

        return weights, back

    def gibbs(self, network: Layout, theta: Tensor, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw the scales anew from their law given the weights, which stay what they are.

        With :math:`s_k` the given scale of block k (fan-in included) and :math:`e^{2 u_k} \sim \text{InvGamma}(a, b)`,
        so that its standard deviation is :math:`s_k e^{u_k}`, the weights of a block know its precision as

        .. math:: e^{-2 u_k} \mid w \sim \text{Gamma}\Big(a + \tfrac{n_k}2,\;
                  b + \tfrac1{2 s_k^2} \sum_{i=1}^{n_k} w_{ki}^2\Big).

        (:class:`InverseGammaWeights` has b = a here, and :math:`s_k^2` is its b / a, over the fan-in.) In the
        coordinates theta both change: u becomes the new log scale, and z is divided by what the scale was multiplied
        with. Functions, and so the likelihood, do not, so the step leaves every posterior under this prior invariant.

        Args:
            network: The layout of the network's weights.
            theta: Coordinates ``... x P``.
            generator: Source of randomness; None: torch's global stream.

        Returns:
            The new coordinates, ``... x P``, of the same weights.

        Raises:
            UnsupportedError: The squared scales have no inverse-gamma law.
        """
        law = self._gamma(network, theta)
        if law is None:
            raise UnsupportedError(
                f"priors.{type(self).__name__}.gibbs: the law of the scales given the weights is known only where "
                "their squares are inverse-gamma; take InverseGammaWeights"
            )
        with torch.no_grad():
            shape, rate = law
            sizes = [block.size for block in network.blocks]
            z, u = theta[..., : network.size], theta[..., network.size :]
            squares = torch.stack([part.square().sum(-1) for part in z.split(sizes, -1)], -1)
            shape = shape + 0.5 * torch.tensor(sizes, dtype=z.dtype, device=z.device)
            # log(rate + e^2u Q / 2), by logarithms: a scale far out must not overflow its square.
            log_rate = torch.logaddexp(rate.log(), 2 * u + (0.5 * squares).log())
            new = 0.5 * (log_rate - log_gamma(shape, tuple(u.shape), generator))
            return torch.cat([z * network.expand((u - new).exp()), new], -1)


def inverse_gamma_law(u: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Log density and derivative at u, where exp(2u) ~ InvGamma(a, b)."""
    tail = b * torch.exp(-2 * u)
    return _LOG_2 + a * b.log() - torch.lgamma(a) - 2 * a * u - tail, 2 * (tail - a)


def inverse_gamma_draws(a: Tensor, b: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Draws of u of `shape`, where exp(2u) ~ InvGamma(a, b); differentiable in both."""
    # Gamma(a) = Gamma(a + 1) U^(1/a), in logarithms: for small a draws of Gamma(a) round to zero.
    log_uniform = torch.log1p(-rnd.uniform(shape, generator=generator, like=a))
    return -0.5 * (log_gamma(a + 1, shape, generator) + log_uniform / a - b.log())


def log_gamma(a: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """The log of Gamma(a, 1) draws of `shape`; differentiable in a by implicit reparameterisation."""
    import pyro.distributions as dist

    at = generator.device if generator is not None else a.device
    concentration = a.to(at).expand(shape)
    with rnd.forked(generator):
        return dist.Gamma(concentration, torch.ones_like(concentration)).rsample().log().to(a.device)


def log_gamma_quantile(a: Tensor, p: Tensor) -> Tensor:
    """The log of the quantiles of Gamma(a, 1) at p in (0, 1), of the same shape; differentiable in a."""
    return _LogGammaQuantile.apply(a, p)


class _LogGammaQuantile(torch.autograd.Function):
    """By scipy's inverse of the incomplete gamma function; the derivative is a central difference of it."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, p: Tensor) -> Tensor:
        ctx.save_for_backward(a, p)
        return _log_gamma_quantile(a, p)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        a, p = ctx.saved_tensors
        # The inverse has 13 digits or more: such a step leaves eight of the derivative, in double precision.
        step = 1e-4 * a
        return grad * (_log_gamma_quantile(a + step, p) - _log_gamma_quantile(a - step, p)) / (2 * step), None


def _log_gamma_quantile(a: Tensor, p: Tensor) -> Tensor:
    from scipy.special import gammaincinv, gammaln

    shape, level = a.detach().cpu().double().numpy(), p.detach().cpu().double().numpy()
    found = torch.from_numpy(gammaincinv(shape, level))
    # Near zero the distribution function is x^a / Gamma(a + 1) (1 + O(x)); there x itself may be too small for a float.
    low = torch.from_numpy((gammaln(shape + 1) + np.log(level)) / shape)
    return torch.where(low < -46, low, found.log()).to(a)
