"""Gaussian processes over gpytorch kernels: priors, and in closed form their posteriors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError, ShapeError, UnsupportedError
from ..likelihoods import Gaussian
from ..process import StochasticProcess
from .covariance import cholesky, concatenated, covariance, distinct, solve
from .hyperpriors import drawn
from .pathwise import draw_functions

if TYPE_CHECKING:
    from botorch.posteriors import Posterior

MAX_POINTS = 2000  # of one exact draw
_EAGER_POINTS = 1024  # up to here predict forms its covariance at once
_CHUNK = 2**25  # numbers in one batch of covariance matrices, 256 MB


@dataclass(frozen=True, eq=False)
class GaussianProcess(StochasticProcess):
    r"""A Gaussian process, :math:`f \sim GP(\mu, k)`, with independent outcomes.

    Conditioning is exact: with observations :math:`y = f(X) + \varepsilon`, :math:`\varepsilon \sim N(0, \Sigma)`
    and :math:`A = k(X, X) + \Sigma`,

    .. math::
        f(x_*) \mid y \sim N\big(\mu_* + k_*^\top A^{-1} (y - \mu), \; k_{**} - k_*^\top A^{-1} k_*\big)

    (Rasmussen and Williams 2006, chapter 2). Sigma is the known `noise_variance`, else that of the likelihood;
    with neither, y are the function's own values. `predict` is this in closed form, for any batch of X.
    `sample` is exact too, with one Cholesky factorisation at the distinct points of all batch elements
    (2,000 at most). `sample_functions` is pathwise (Wilson et al. 2020, arXiv 2002.09309): 2,048 random
    features where the kernel has them, which cost the covariance an error of about 2 per cent of the
    variance (much less in few dimensions), and an exact update at the data; else an exact draw on a
    grid of 1,024 points over [-1, 1]^d and the data, with the conditional mean between them. Draws of the
    two verbs have the same law but are not the same functions for the same generator.

    Kernel and mean are copied, and their hyper-parameters are constants: nothing accumulates
    gradients in them. :class:`probnn.Exact` optimises those that required gradients when the process was made.

    With `hyperprior` every drawn function has hyper-parameters of its own, the process is a mixture of
    Gaussian processes, and `predict` is that of 256 draws.

    Args:
        kernel: A gpytorch kernel without batch shape; or a tuple of one for each outcome.
        mean: A gpytorch mean, or a tuple likewise; None: zero.
        input_dim: Number of inputs d.
        output_dim: Number of outcomes m; None: as many as there are kernels. One kernel serves as
            the start for all.
        hyperprior: A law for each hyper-parameter that is random: ``{"base_kernel.lengthscale":
            probnn.priors.LogNormal(0.0, 0.5), "mean.constant": probnn.priors.Normal()}``. Names are those of
            the constrained values in the kernel; distributions of torch and Pyro serve too, but are
            not saved.
        trainable: Names of the raw parameters that may be optimised; None: those that require gradients.
        train_X, train_Y, noise_variance, factor: Data and Cholesky factor; :meth:`condition` sets them.
        likelihood: Gaussian, its noise known; :class:`probnn.Exact` sets it.
        info: What happened while fitting.

    Raises:
        DomainError: Not a gpytorch kernel or mean, a batch shape, mixed dtypes, or a hyper-prior that does not fit.

    Example:
        >>> import torch, gpytorch
        >>> prior = GaussianProcess(gpytorch.kernels.MaternKernel(nu=2.5), input_dim=1)
        >>> posterior = prior.condition(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [-0.5]]))
        >>> posterior.predict(torch.tensor([[0.0]])).mean.round(decimals=3)
        tensor([[0.5000]])
    """

    kernel: Any
    mean: Any = None
    input_dim: int = field(kw_only=True)
    output_dim: int = field(default=None, kw_only=True)  # type: ignore[assignment]
    hyperprior: Mapping[str, Any] | None = field(default=None, kw_only=True)
    trainable: tuple[str, ...] | None = field(default=None, kw_only=True)
    train_X: Tensor | None = field(default=None, kw_only=True, repr=False)
    train_Y: Tensor | None = field(default=None, kw_only=True, repr=False)
    noise_variance: Tensor | None = field(default=None, kw_only=True, repr=False)
    factor: Tensor | None = field(default=None, kw_only=True, repr=False)
    likelihood: Gaussian | None = field(default=None, kw_only=True)
    info: Any = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        from .kernels import copies  # imports gpytorch, and teaches saving about it

        where = "GaussianProcess"
        validation.positive_int(where, "input_dim", self.input_dim)
        given = self.kernel if isinstance(self.kernel, (tuple, list)) else (self.kernel,)
        m = self.output_dim if self.output_dim is not None else len(given)
        validation.positive_int(where, "output_dim", m)
        kernels, means = copies(where, "kernel", self.kernel, m), copies(where, "mean", self.mean, m)
        parameters = _named_parameters(kernels, means)
        trainable = self.trainable
        if trainable is None:
            trainable = tuple(name for name, x in parameters.items() if x.requires_grad)
        if unknown := set(trainable) - set(parameters):
            raise DomainError(f"{where}: trainable names {sorted(unknown)} are not among {sorted(parameters)}")
        like = torch.empty(0) if not parameters else next(iter(parameters.values()))
        if odd := [name for name, x in parameters.items() if (x.dtype, x.device) != (like.dtype, like.device)]:
            raise DomainError(f"{where}: parameters must have one dtype and device, got others in {odd}; use kernel.to")
        for x in parameters.values():
            x.requires_grad_(False)
        data = (self.train_X, self.train_Y, self.noise_variance, self.factor)
        if any(x is None for x in data) and any(x is not None for x in data):
            raise DomainError(f"{where}: data come with their Cholesky factor; use condition(X, Y)")
        if self.likelihood is not None and (not isinstance(self.likelihood, Gaussian) or self.likelihood.noise is None):
            raise DomainError(f"{where}: likelihood must be Gaussian with a known noise, got {self.likelihood!r}")
        if self.hyperprior is not None and not isinstance(self.hyperprior, Mapping):
            raise DomainError(f"{where}: hyperprior must be a dictionary of laws by name, got {self.hyperprior!r}")
        hyperprior = None if not self.hyperprior else dict(self.hyperprior)
        set_ = object.__setattr__
        set_(self, "output_dim", m)
        set_(self, "kernel", kernels[0] if m == 1 else kernels)
        set_(self, "mean", means[0] if m == 1 else None if self.mean is None else means)
        set_(self, "trainable", trainable)
        set_(self, "hyperprior", hyperprior)
        set_(self, "dtype", like.dtype)
        set_(self, "device", like.device)
        self._probe(where)

    def _probe(self, where: str) -> None:
        """Try kernel, mean and hyper-prior on two points."""
        from gpytorch.settings import debug

        X = torch.linspace(0.25, 0.75, 2 * self.input_dim, dtype=self.dtype, device=self.device).reshape(2, -1)
        for kernel, mean in zip(self.kernels, self.means, strict=True):
            try:
                with debug(True):  # BoTorch turns gpytorch's check of ard_num_dims off
                    got = [tuple(covariance(kernel, X).shape), (2,) if mean is None else tuple(mean(X).shape)]
            except (RuntimeError, IndexError) as error:
                what = f"the kernel or mean does not take {self.input_dim} inputs"
                raise DomainError(f"{where}: {what} ({error})") from error
            if got != [(2, 2), (2,)]:
                raise DomainError(
                    f"{where}: at 2 points the kernel and mean must give shapes (2, 2) and (2,), got {got}; "
                    "give one kernel for each outcome, without batch shape"
                )
            if self.hyperprior:
                drawn(kernel, mean, self.hyperprior, 2, rnd.generator_from(0))

    @property
    def kernels(self) -> tuple[Any, ...]:
        """The kernel of each outcome."""
        return self.kernel if isinstance(self.kernel, tuple) else (self.kernel,)

    @property
    def means(self) -> tuple[Any, ...]:
        """The mean of each outcome; None where it is zero."""
        return self.mean if isinstance(self.mean, tuple) else (self.mean,) * self.output_dim

    @property
    def prior(self) -> GaussianProcess | None:  # type: ignore[override]
        """The process with the same hyper-parameters and no data; None for a prior."""
        if self.train_X is None and self.likelihood is None:
            return None
        return self._with(train_X=None, train_Y=None, noise_variance=None, factor=None, likelihood=None, info=None)

    @property
    def log_evidence(self) -> Tensor:
        r"""Log marginal likelihood of the data, :math:`\log N(y; \mu, k(X, X) + \Sigma)`, one a batch element."""
        if self.factor is None or self._whitened is None:
            return torch.zeros((), dtype=self.dtype, device=self.device)
        log_scale = self.factor.diagonal(dim1=-2, dim2=-1).log().sum((-1, -2))
        size = self._whitened.shape[-1] * self.output_dim
        return -0.5 * self._whitened.square().sum((-1, -2)) - log_scale - 0.5 * size * math.log(2 * math.pi)

    @cached_property
    def _whitened(self) -> Tensor | None:
        """L^-1 (y - mean) of the data, ``... x m x n``."""
        if self.train_X is None or self.train_Y is None or self.factor is None:
            return None
        residual = self.train_Y.mT - self._mean_values(self.train_X)
        return solve(self.factor, residual.unsqueeze(-1)).squeeze(-1)

    @cached_property
    def _double(self) -> GaussianProcess:
        """The process in double precision: at close points single precision has no Cholesky factor."""
        return self if self.dtype == torch.double else self.to(dtype=torch.double)

    @property
    def _parameters(self) -> dict[str, Tensor]:
        return _named_parameters(self.kernels, self.means)

    def _with(self, **changes: Any) -> GaussianProcess:
        """A process with other fields and the same modules, unlike `dataclasses.replace`, which copies these."""
        other = copy.copy(self)
        for cached in ("_whitened", "_double"):
            vars(other).pop(cached, None)
        vars(other).update(changes)
        return other

    def _mean_values(self, X: Tensor) -> Tensor:
        """``... x m x n``."""
        zero = X.new_zeros(X.shape[:-1])
        return torch.stack([zero if mean is None else mean(X) for mean in self.means], -2)

    def _covariances(self, X: Tensor) -> Tensor:
        """Of the prior, ``... x m x n x n``."""
        return torch.stack([covariance(kernel, X) for kernel in self.kernels], -3)

    def _projection(self, X: Tensor) -> Tensor:
        """L^-1 k(data, X), ``... x m x n x q``: what the data say about X."""
        self._check_batch(X)
        data, factor = self.train_X, self.factor
        if factor is None or data is None:  # nobody asks then; it tells the type checker
            raise ValueError("no data")
        # One process for a batch of X: all points are columns of one system.
        batched = factor.ndim > 3
        rows = X if batched else X.reshape(-1, X.shape[-1])
        solved = solve(factor, torch.stack([covariance(kernel, data, rows) for kernel in self.kernels], -3))
        if batched or X.ndim == 2:
            return solved
        lead = tuple(range(X.ndim - 2))
        return solved.unflatten(-1, X.shape[:-1]).movedim(tuple(i + 2 for i in lead), lead)

    def _check_batch(self, X: Tensor) -> None:
        try:
            torch.broadcast_shapes(X.shape[:-2], self._batch_shape)
        except RuntimeError:
            raise ShapeError(
                f"GaussianProcess: X {tuple(X.shape)} must broadcast with the batch {tuple(self._batch_shape)} of data "
                "the process was conditioned on"
            ) from None

    @property
    def _batch_shape(self) -> torch.Size:
        """Of the data: a batch of data makes a batch of processes."""
        return torch.Size() if self._whitened is None else self._whitened.shape[:-2]

    def _single(self, verb: str) -> None:
        if self._batch_shape:
            raise UnsupportedError(
                f"GaussianProcess.{verb}: the process was conditioned on a batch of data of shape "
                f"{tuple(self._batch_shape)}, so it is a batch of processes; predict serves them all"
            )

    def _moments(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean ``... x m x n`` and covariance ``... x m x n x n`` of f(X); the prior's typical variance ``... x m``."""
        mean, covariances = self._mean_values(X), self._covariances(X)
        scale = covariances.diagonal(dim1=-2, dim2=-1).mean(-1)
        if self._whitened is None:
            return mean, covariances, scale
        projection = self._projection(X)
        mean = mean + (projection.mT @ self._whitened.unsqueeze(-1)).squeeze(-1)
        return mean, covariances - projection.mT @ projection, scale

    def _predict(self, X: Tensor, noise: bool) -> Posterior:
        if self.hyperprior:
            return super()._predict(X, noise)
        from botorch.posteriors import GPyTorchPosterior
        from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
        from linear_operator import to_linear_operator
        from linear_operator.operators import MatmulLinearOperator

        covariances: list[Any]
        if X.shape[-2] <= _EAGER_POINTS:
            mean, dense, _ = self._moments(X)
            covariances = [to_linear_operator(dense[..., k, :, :]) for k in range(self.output_dim)]
        else:  # diagonals only, unless somebody asks for more
            mean, covariances = self._mean_values(X), [kernel(X) for kernel in self.kernels]
            if self._whitened is not None:
                projection = self._projection(X)
                mean = mean + (projection.mT @ self._whitened.unsqueeze(-1)).squeeze(-1)
                for k in range(self.output_dim):
                    part = projection[..., k, :, :]
                    covariances[k] = covariances[k] + MatmulLinearOperator(part.mT, -part)
        # A batch of Y alone moves only the mean; BoTorch's transforms want one batch shape for both.
        covariances = [c.expand(*mean.shape[:-2], *c.shape[-2:]) for c in covariances]
        if noise and self.likelihood is not None:
            variance = self.likelihood.moments(mean.mT, mean.new_zeros(1, 0))[1]
            covariances = [c.add_diagonal(variance[..., k]) for k, c in enumerate(covariances)]
        laws = [MultivariateNormal(mean[..., k, :], c) for k, c in enumerate(covariances)]
        return GPyTorchPosterior(laws[0] if len(laws) == 1 else MultitaskMultivariateNormal.from_independent_mvns(laws))

    def _condition(self, X: Tensor, Y: Tensor, noise_variance: Tensor | None) -> GaussianProcess:
        if self.hyperprior:
            raise UnsupportedError(
                "GaussianProcess.condition: with a hyperprior the posterior is no Gaussian process; leave it out and "
                "let Exact(optimize=True) estimate the hyper-parameters, under gpytorch priors registered on the kernel"
            )
        self._check_batch(X)
        self._check_batch(Y)
        if X.shape[-2] == 0:
            return self
        if self.dtype != torch.double:  # only the result is in single precision
            wide = (X.double(), Y.double(), None if noise_variance is None else noise_variance.double())
            found = self._double._condition(*wide)
            data = (found.train_X, found.train_Y, found.noise_variance, found.factor)
            return self._given(*(x.to(self.dtype) for x in data if x is not None))
        noise = Y.new_zeros(Y.shape[-2:]) if noise_variance is None else noise_variance
        if noise_variance is None and self.likelihood is not None:
            noise = self.likelihood.moments(noise, noise.new_zeros(1, 0))[1]
        own = self._covariances(X) + torch.diag_embed(noise.mT)
        if self.train_X is None or self.train_Y is None or self.noise_variance is None or self.factor is None:
            return self._given(X, Y, noise, cholesky(own))
        # The factor grows by a block: what was there stays.
        cross = self._projection(X).mT
        corner = cholesky(own - cross @ cross.mT, scale=own.diagonal(dim1=-2, dim2=-1).mean(-1))
        above = concatenated(self.factor, self.factor.new_zeros(cross.mT.shape), -1, 3)
        factor = concatenated(above, concatenated(cross, corner, -1, 3), -2, 3)
        old = ((self.train_X, X), (self.train_Y, Y), (self.noise_variance, noise))
        return self._given(*(concatenated(before, new, -2) for before, new in old), factor)

    def _given(self, *data: Tensor) -> GaussianProcess:
        # Contiguous, as from a file: the same numbers in another layout give other last digits.
        names = ("train_X", "train_Y", "noise_variance", "factor")
        return self._with(**{name: x.contiguous() for name, x in zip(names, data, strict=True)})

    def _sample_functions(self, shape: torch.Size, generator: torch.Generator | None) -> Callable[[Tensor], Tensor]:
        self._single("sample_functions")
        evaluate = draw_functions(self._double, shape.numel(), generator)
        return lambda X: evaluate(X.double()).to(self.dtype).reshape(*shape, *X.shape[:-1], self.output_dim)

    def _sample(self, X: Tensor, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        self._single("sample")
        points, inverse = distinct(X)
        if len(points) > MAX_POINTS:
            raise UnsupportedError(
                f"GaussianProcess.sample: exact draws take {MAX_POINTS} distinct points at most, got {len(points)}; "
                "sample_functions draws functions for any number of points"
            )
        f = self._double._draw(points.double().unsqueeze(0), shape.numel(), generator)
        return f.to(self.dtype)[..., inverse].movedim(-2, -1).reshape(*shape, *X.shape[:-1], self.output_dim)

    def _sample_tasks(self, X: Tensor, generator: torch.Generator | None) -> Tensor:
        self._single("sample_tasks")
        tasks = X.reshape(-1, *X.shape[-2:])
        f = self._double._draw(tasks.double(), len(tasks), generator)
        return f.to(self.dtype).mT.reshape(*X.shape[:-1], self.output_dim)

    def _draw(self, X: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
        """`count` exact draws ``count x m x n`` at X ``count x n x d``, or ``1 x n x d`` for all."""
        n, m = X.shape[-2], self.output_dim
        drawn_values = [X.new_empty(0, m, n)]
        shared = len(X) == 1 and not self.hyperprior
        step = max(1, count if shared else _CHUNK // max(1, m * n * n))
        for first in range(0, count, step):
            size = min(step, count - first)
            part = X if len(X) == 1 else X[first : first + size]
            if self.hyperprior:
                mean, covariances = self._drawn_moments(part, size, generator)
                factor = cholesky(covariances, quiet=True)
            else:
                mean, covariances, scale = self._moments(part)
                factor = cholesky(covariances, scale=scale, quiet=True)
            z = rnd.normal((size, m, n), generator=generator, like=X)
            if shared:
                drawn_values.append(mean + torch.einsum("mij,smj->smi", factor[0], z))
            else:
                drawn_values.append(mean + (factor @ z.unsqueeze(-1)).squeeze(-1))
        return torch.cat(drawn_values)

    def _drawn_moments(self, X: Tensor, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Moments of f(X) for `count` draws of the hyper-parameters."""
        X = X.expand(count, *X.shape[-2:])
        values, covariances = [], []
        for kernel, mean in zip(self.kernels, self.means, strict=True):
            kernel, mean = drawn(kernel, mean, self.hyperprior or {}, count, generator)
            values.append(X.new_zeros(X.shape[:-1]) if mean is None else mean(X))
            covariances.append(covariance(kernel, X))
        return torch.stack(values, -2), torch.stack(covariances, -3)


def _named_parameters(kernels: tuple[Any, ...], means: tuple[Any, ...]) -> dict[str, Tensor]:
    rows = [("kernel", kernels), ("mean", means)]
    modules = {f"{k}.{what}": part for what, row in rows for k, part in enumerate(row) if part is not None}
    return {f"{at}.{name}": x for at, part in modules.items() for name, x in part.named_parameters()}
