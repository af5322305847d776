"""The predictive distribution of weighted function draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from botorch.posteriors import Posterior
from torch import Tensor

from ..errors import DomainError, NonFiniteError, ShapeError, UnsupportedError
from ..random import normal, uniform
from ..validation import indices as check_indices
from ..validation import sample_shape as check_sample_shape
from .mixture import mixture_quantile, root


class _Absent(UnsupportedError, AttributeError):
    """What only Gaussian models have: `hasattr` is False, and reading it says what there is instead."""


class DrawsPosterior(Posterior):
    r"""Posterior over the values of weighted function draws, with or without observation noise.

    With draws :math:`f_s`, weights :math:`w_s` and noise standard deviations :math:`\sigma_s` an outcome has the
    law :math:`\sum_s w_s \mathcal N(f_s(x), \sigma_s(x)^2)`, point masses where there is none (or zero). One draw is
    one function: a joint sample has one draw for all points, outcomes *and* t-batch elements, and noise that is
    independent over points and outcomes but shared over the t-batch, so that sample-average acquisition values
    (Balandat et al., 2020, arXiv:1910.06403) do not depend on what else is in the batch. BoTorch's `get_sampler`
    gives a :class:`DrawsSampler`; its normal samplers (Sobol, iid) work too.

    Args:
        values: Draws of the function values, ``batch x S x q x m``; infinite values are legal.
        log_weights: Log-weights up to a constant, ``... x S``, the leading shape broadcasting with ``batch``;
            ``-inf`` is a weight of zero. None: equal weights.
        noise_std: Standard deviations >= 0, possibly infinite, that broadcast to the values (for instance
            ``S x 1 x m``); a zero is an outcome without noise, such as a class of probability one. None:
            noise-free function values.
        salt: Identifies the model in a `DrawsSampler`, so that models given the same seed draw independently.
            It must not depend on where the model was evaluated.

    Raises:
        ShapeError: If shapes do not fit, or there is no draw.
        NonFiniteError: If a tensor holds NaN, or a log-weight is ``+inf``.
        DomainError: If dtypes or devices differ, all weights are zero, or a noise is negative.

    Example:
        >>> values = torch.tensor([[[0.0]], [[1.0]], [[5.0]]])  # S = 3 draws at q = 1 point of m = 1 outcome
        >>> posterior = DrawsPosterior(values, log_weights=torch.tensor([0.5, 0.25, 0.25]).log())
        >>> posterior.mean, posterior.quantile(0.75)
        (tensor([[1.5000]]), tensor([[1.]]))
    """

    def __init__(
        self, values: Tensor, log_weights: Tensor | None = None, noise_std: Tensor | None = None, *, salt: int = 0
    ) -> None:
        optional = {"log_weights": log_weights, "noise_std": noise_std}
        given = {"values": values} | {name: x for name, x in optional.items() if x is not None}
        got = "got " + ", ".join(f"{name} {_describe(x)}" for name, x in given.items())
        for name, x in given.items():
            alike = torch.is_tensor(x) and (x.dtype, x.device) == (values.dtype, values.device)
            if not alike or not x.is_floating_point():
                raise DomainError(f"DrawsPosterior: {name} must be a floating-point tensor like values, {got}; use .to")
            if x.isnan().any() or (name == "log_weights" and x.isposinf().any()):
                raise NonFiniteError(f"DrawsPosterior: {name} must not hold NaN or log-weights of +inf, {got}")
        if values.ndim < 3 or values.shape[-3] == 0:
            raise ShapeError(f"DrawsPosterior: values must be batch x S x q x m with S >= 1 draws, {got}")
        log_weights = values.new_zeros(values.shape[-3]) if log_weights is None else log_weights
        try:
            full = torch.broadcast_shapes(values.shape[:-3], log_weights.shape[:-1]) + values.shape[-3:]
            fits = noise_std is None or torch.broadcast_shapes(noise_std.shape, full) == full
        except RuntimeError:
            fits = False
        if not fits or log_weights.shape[-1:] != values.shape[-3:-2]:
            raise ShapeError(
                "DrawsPosterior: values batch x S x q x m, log_weights batch x S and noise_std, which broadcasts to "
                f"values, must fit together, {got}"
            )
        if log_weights.isneginf().all(-1).any():
            raise DomainError(f"DrawsPosterior: every row of log_weights must have one above -inf, {got}")
        if noise_std is not None and not (noise_std >= 0).all():
            raise DomainError(f"DrawsPosterior: noise_std must not be negative, got a minimum of {noise_std.min():.3g}")
        if isinstance(salt, bool) or not isinstance(salt, int):
            raise DomainError(f"DrawsPosterior: salt must be an integer, got {salt!r}")
        self.values, self.log_weights = values.expand(full), log_weights.log_softmax(-1)
        self.noise_std, self.salt = noise_std, salt

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("distribution", "mvn"):
            raise _Absent(
                f"DrawsPosterior: has no Gaussian {name}, which BoTorch's qMaxValueEntropy, qJointEntropySearch and "
                "qPredictiveEntropySearch need; for draws use probnn.surrogates.MaxValueEntropy or "
                "ExpectedInformationGain"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the draws."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """The device of the draws."""
        return self.values.device

    @property
    def batch_shape(self) -> torch.Size:
        """The t-batch shape; the draws are no part of it."""
        return self.values.shape[:-3]

    @property
    def event_shape(self) -> torch.Size:
        """``q x m``."""
        return self.values.shape[-2:]

    def _extended_shape(self, sample_shape: torch.Size = torch.Size()) -> torch.Size:
        return torch.Size(sample_shape) + self.batch_shape + self.event_shape

    @property
    def base_sample_shape(self) -> torch.Size:
        """``batch x r x m``: row 0 chooses the draw, the other q rows (none without noise) are the noise."""
        q, m = self.event_shape
        return self.batch_shape + torch.Size([1 if self.noise_std is None else 1 + q, m])

    @property
    def batch_range(self) -> tuple[int, int]:
        """The dimensions of `base_sample_shape` over which samplers share their base samples."""
        return (0, -2)

    @property
    def weights(self) -> Tensor:
        """The normalised weights, ``... x S``."""
        return self.log_weights.exp()

    @property
    def ess(self) -> Tensor:
        r"""Effective sample size :math:`1 / \sum_s w_s^2` (Kish, 1965), one for each row of weights."""
        return (-(2 * self.log_weights).logsumexp(-1)).exp()

    def _components(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weights ``... x S x 1 x 1``, values and noise, those of weight zero replaced: 0 * inf would be NaN."""
        w = self.weights[..., None, None]
        noise = None if self.noise_std is None else torch.where(w > 0, self.noise_std, 1.0)
        return w, torch.where(w > 0, self.values, 0.0), noise

    @property
    def mean(self) -> Tensor:
        r""":math:`\bar f = \sum_s w_s f_s`, shape ``batch x q x m``."""
        w, values, _ = self._components()
        return (w * values).sum(-3)

    @property
    def variance(self) -> Tensor:
        r""":math:`\sum_s w_s (f_s - \bar f)^2 + \sum_s w_s \sigma_s^2`, shape ``batch x q x m``.

        The variance of the mixture itself (no ``S / (S - 1)``), zero where noise-free draws agree: BoTorch's
        analytic acquisition functions clamp it where they take its root.
        """
        w, values, noise = self._components()
        deviation = values - (w * values).sum(-3, keepdim=True)
        # inf - inf: an infinite draw of positive weight, whose mean is infinite too.
        square = torch.where(deviation.isfinite(), deviation, math.inf).square()
        return (w * (square if noise is None else square + noise.square())).sum(-3)

    @property
    def covariance(self) -> Tensor:
        """Covariance over points and outcomes, ``batch x q*m x q*m``; outcome j at point i has index i*m + j.

        Interleaved, as in gpytorch's multitask normal. Noise adds to the diagonal alone.
        """
        w, values, noise = self._components()
        deviation = (values - (w * values).sum(-3, keepdim=True)).flatten(-2)
        covariance = (w.squeeze(-1) * deviation).mT @ deviation
        if noise is None:
            return covariance
        return covariance + (w * noise.square()).sum(-3).expand(self._extended_shape()).flatten(-2).diag_embed()

    def quantile(self, value: Tensor | float) -> Tensor:
        """Marginal quantiles ``inf{y: P(Y <= y) >= p}``, shape ``value.shape + batch x q x m``.

        A weighted order statistic without noise, the root of the mixture's distribution function with it;
        differentiable in the draws and the noise.

        Args:
            value: Probabilities p strictly between 0 and 1, anything else is a DomainError.

        Returns:
            The quantiles.

        Raises:
            UnsupportedError: If there is noise and a draw or a noise of positive weight is infinite.
        """
        p = torch.as_tensor(value, dtype=self.dtype, device=self.device)
        if not ((p > 0) & (p < 1)).all():
            raise DomainError(f"DrawsPosterior.quantile: value must lie strictly between 0 and 1, got {value!r}")
        p = p.reshape(p.shape + (1,) * self.values.ndim)
        w, values, noise = self._components()
        if noise is None:
            return self._order_statistic(p, w)
        noise = noise.expand(self.values.shape)
        atoms = (w > 0) & (noise == 0)
        if not atoms.any():
            return mixture_quantile(p, w, values, noise).squeeze(-3)
        only = (atoms | (w <= 0)).all(-3, keepdim=True)  # nothing but point masses: order statistics again
        mixed = mixture_quantile(p, w, values, torch.where(only, 1.0, noise)).squeeze(-3)
        return torch.where(only.squeeze(-3), self._order_statistic(p, w), mixed)

    def _order_statistic(self, p: Tensor, w: Tensor) -> Tensor:
        """Weighted quantiles of the values alone."""
        ordered, order = self.values.sort(-3)
        cdf = w.detach().double().expand(self.values.shape).gather(-3, order).cumsum(-3)
        # The slack absorbs the rounding of the sum, so that p = k / S of equal weights is the k-th draw.
        below = cdf < (p.double() - self.values.shape[-3] * torch.finfo(self.dtype).eps) * cdf[..., -1:, :, :]
        return ordered.expand(below.shape).gather(-3, below.sum(-3, keepdim=True)).squeeze(-3)

    def log_density(self, y: Tensor | float) -> Tensor:
        r"""Marginal log density :math:`\log \sum_s w_s \mathcal N(y; f_s, \sigma_s^2)` of each point and outcome.

        Args:
            y: Outcomes, broadcasting with ``batch x q x m``.

        Returns:
            The log density, of the shape to which both broadcast.

        Raises:
            UnsupportedError: Without noise, or where it is zero: there is no density.
        """
        w, values, noise = self._components()
        if noise is None or (noise == 0).any():
            raise UnsupportedError(
                "DrawsPosterior.log_density: draws without noise are point masses and have no density; ask the model "
                "for posterior(X, observation_noise=True), or for the mean where a discrete outcome is certain"
            )
        log_component = -0.5 * ((self._beside_draws(y) - values) / noise).square() - noise.log()
        return (self.log_weights[..., None, None] + log_component).logsumexp(-3) - 0.5 * math.log(2 * math.pi)

    def density(self, value: Tensor | float) -> Tensor:
        """Marginal density of each point and outcome: the exponential of :meth:`log_density`."""
        return self.log_density(value).exp()

    def rsample(self, sample_shape: torch.Size | None = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Joint samples ``sample_shape x batch x q x m``, differentiable in the draws and the noise.

        Args:
            sample_shape: Shape of the samples; None means ``(1,)``, as everywhere in BoTorch.
            generator: Source of randomness; None is torch's global stream.

        Returns:
            The samples.
        """
        shape = check_sample_shape("DrawsPosterior.rsample", (1,) if sample_shape is None else sample_shape)
        shared = shape + torch.Size([1] * len(self.batch_shape))
        u = uniform(shared, generator=generator, dtype=torch.float64, device=self.device)
        noisy = self.noise_std is not None
        eps = normal(shared + self.event_shape, generator=generator, like=self.values) if noisy else None
        return self._joint(shape, u, eps)

    def rsample_from_base_samples(self, sample_shape: torch.Size, base_samples: Tensor) -> Tensor:
        r"""Joint samples ``sample_shape x batch x q x m`` from standard normal base samples.

        The draw is the inverse distribution function of the weights at :math:`\Phi(z_{00})`, the noise of point i
        is :math:`\sigma_s z_{1+i}`.

        Args:
            sample_shape: Shape of the samples.
            base_samples: The normals z, ``sample_shape x base_sample_shape``; t-batch dimensions may have size 1
                and are then shared. Other shapes raise a ShapeError.

        Returns:
            The samples.

        Raises:
            ShapeError: The base samples have another shape.
        """
        expected, got = torch.Size(sample_shape) + self.base_sample_shape, base_samples.shape
        batch = range(len(sample_shape), len(expected) - 2)
        if len(got) != len(expected) or any(
            got[d] != size and not (got[d] == 1 and d in batch) for d, size in enumerate(expected)
        ):
            raise ShapeError(
                "DrawsPosterior.rsample_from_base_samples: base_samples must be sample_shape x base_sample_shape, "
                f"{tuple(expected)}, or have size 1 in t-batch dimensions, got {tuple(got)}"
            )
        for d in batch:
            if base_samples.stride(d) == 0 and got[d] > 1:  # BoTorch's samplers expand what is shared
                base_samples = base_samples.narrow(d, 0, 1)
        u = torch.special.ndtr(base_samples[..., 0, 0].double())
        return self._joint(torch.Size(sample_shape), u, base_samples[..., 1:, :].to(self.dtype))

    def _joint(self, sample_shape: torch.Size, u: Tensor, eps: Tensor | None) -> Tensor:
        """Samples from uniforms ``sample_shape x b`` and, for noise, normals ``sample_shape x b x q x m``."""
        batch, n = self.batch_shape, sample_shape.numel()
        cdf = self.log_weights.detach().double().exp().cumsum(-1)
        cdf = cdf / cdf[..., -1:]
        # Below 1, so that it cannot reach draws of weight zero at the end.
        u = u.clamp(max=1 - 2**-53).reshape(n, *u.shape[len(sample_shape) :])
        shared = cdf.numel() == cdf.shape[-1] and u.numel() == n
        if shared:
            index = torch.searchsorted(cdf.flatten(), u.flatten(), right=True)
        else:
            u = u.movedim(0, -1).expand(*batch, n).contiguous()
            index = torch.searchsorted(cdf.expand(*batch, -1).contiguous(), u, right=True)[..., None, None]

        def take(x: Tensor) -> Tensor:
            if shared:
                return x.movedim(-3, 0).index_select(0, index)
            return x.gather(-3, index.expand(*batch, n, *self.event_shape)).movedim(-3, 0)

        samples = take(self.values)
        if self.noise_std is not None and eps is not None:
            noise = take(self.noise_std.expand(self.values.shape))
            samples = samples + noise * eps.reshape(n, *eps.shape[len(sample_shape) :])
        return samples.reshape(sample_shape + samples.shape[1:])

    def _beside_draws(self, x: Tensor | float) -> Tensor:
        """Align something of shape ``batch x q x m`` with the values."""
        x = x if torch.is_tensor(x) else torch.as_tensor(x, dtype=self.dtype, device=self.device)
        return x.unsqueeze(-3) if x.ndim > 2 else x

    def select(self, output_indices: Sequence[int]) -> DrawsPosterior:
        """The outcomes `output_indices`, in that order, from the same draws.

        Raises:
            DomainError: If there is no index, or one is not an integer from -m to m - 1.
        """
        m = self.event_shape[-1]
        indices = check_indices("DrawsPosterior.select", "output_indices", output_indices, m)
        noise = None if self.noise_std is None else self.noise_std.expand(*self.noise_std.shape[:-1], m)[..., indices]
        return DrawsPosterior(self.values[..., indices], self.log_weights, noise, salt=self.salt)

    def affine(self, mean: Tensor | float, scale: Tensor | float) -> DrawsPosterior:
        """The law of ``mean + scale * Y`` (undoes a standardisation), both broadcasting with ``batch x q x m``."""
        mean, scale = self._beside_draws(mean), self._beside_draws(scale)
        noise = None if self.noise_std is None else scale.abs() * self.noise_std
        return DrawsPosterior(mean + scale * self.values, self.log_weights, noise, salt=self.salt)

    def scalarize(self, weights: Tensor, offset: Tensor | float = 0.0) -> DrawsPosterior:
        """The law of the one outcome ``offset + Y @ weights``, the noise variances combined.

        Raises:
            ShapeError: If `weights` does not have shape ``(m,)``.
        """
        if weights.shape != self.event_shape[-1:]:
            m, got = self.event_shape[-1], tuple(weights.shape)
            raise ShapeError(f"DrawsPosterior.scalarize: weights must have shape ({m},), got {got}")
        noise = None if self.noise_std is None else root((weights * self.noise_std).square().sum(-1, keepdim=True))
        return DrawsPosterior((self.values @ weights).unsqueeze(-1) + offset, self.log_weights, noise, salt=self.salt)


def _describe(x: object) -> str:
    return f"{tuple(x.shape)} {x.dtype} {x.device}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
