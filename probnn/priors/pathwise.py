r"""Functions drawn from Gaussian processes, to be evaluated anywhere (pathwise conditioning).

A draw of the prior, made of random features, is corrected at the data by Matheron's rule,

.. math:: f(\cdot) + k(\cdot, X)\,(K + \Sigma)^{-1}\,(y - f(X) - \varepsilon), \qquad \varepsilon \sim N(0, \Sigma)

(Wilson, Borovitskiy, Terenin, Mostowsky and Deisenroth 2020, arXiv 2002.09309). The features of a
stationary kernel are cosines and sines of random frequencies (Rahimi and Recht 2007), which have the
kernel as their mean covariance and its variance exactly. The other kernels are drawn on a grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import random as rnd
from ..errors import UnsupportedError
from .covariance import cholesky, covariance, solve
from .hyperpriors import drawn

NUM_FEATURES = 2048
NUM_GRID_POINTS = 1024
MAX_LOST_VARIANCE = 0.02
_CHUNK = 2**24  # numbers in the largest intermediate tensor, 128 MB


@dataclass(frozen=True)
class Waves:
    """Cosines and sines: frequencies ``b x L x d`` and variances ``b``, b = 1 or one for each function."""

    variance: Tensor
    frequencies: Tensor

    @property
    def size(self) -> int:
        """Number of features."""
        return 2 * self.frequencies.shape[-2]

    def __call__(self, X: Tensor) -> Tensor:
        """Features ``b x n x 2L`` of X ``n x d``."""
        phases = X @ self.frequencies.mT
        scale = (self.variance / self.frequencies.shape[-2]).sqrt()[:, None, None]
        return scale * torch.cat([phases.cos(), phases.sin()], -1)


@dataclass(frozen=True)
class Lines:
    """Scaled inputs, the features of a linear kernel: scales ``b x 1 x d``."""

    scales: Tensor

    @property
    def size(self) -> int:
        """Number of features."""
        return self.scales.shape[-1]

    def __call__(self, X: Tensor) -> Tensor:
        """Features ``b x n x d`` of X ``n x d``."""
        return X * self.scales


def random_features(kernel: Any, input_dim: int, generator: torch.Generator | None) -> list[Waves | Lines] | None:
    """Random features of a kernel, or None where it has none.

    Known are RBF, Matern, rational quadratic, periodic and constant kernels, their products, linear
    kernels, and scaled sums of all these.

    Args:
        kernel: A gpytorch kernel, without batch shape or with one of one dimension.
        input_dim: Number of inputs d.
        generator: Source of randomness; None: torch's global stream.
    """
    with torch.no_grad():
        return _features(kernel, torch.arange(input_dim), input_dim, generator)


def _features(
    kernel: Any, columns: Tensor, input_dim: int, generator: torch.Generator | None, select: bool = True
) -> list[Waves | Lines] | None:
    from gpytorch import kernels as gk

    if select and kernel.active_dims is not None:
        columns = columns[kernel.active_dims.cpu()]
    # Exact types: a subclass may mean something else.
    if type(kernel) is gk.AdditiveKernel:
        parts = [_features(part, columns, input_dim, generator) for part in kernel.kernels]
        return None if any(part is None for part in parts) else [term for part in parts for term in part or []]
    if type(kernel) is gk.ScaleKernel:
        # gpytorch passes on what the outer kernel selected, without selecting again.
        inner = _features(kernel.base_kernel, columns, input_dim, generator, select=False)
        outputscale = kernel.outputscale.reshape(-1)
        return None if inner is None else [_scaled(term, outputscale) for term in inner]
    if type(kernel) is gk.LinearKernel:
        roots = kernel.variance.sqrt().reshape(-1, 1, kernel.variance.shape[-1])
        scales = roots.new_zeros(roots.shape[0], 1, input_dim)
        scales[..., columns] = roots.expand(-1, 1, len(columns))
        return [Lines(scales)]
    wave = _wave(kernel, columns, input_dim, generator)
    return None if wave is None else [wave]


def _scaled(term: Waves | Lines, factor: Tensor) -> Waves | Lines:
    if isinstance(term, Lines):
        return Lines(term.scales * factor.sqrt()[:, None, None])
    return Waves(term.variance * factor, term.frequencies)


def _wave(kernel: Any, columns: Tensor, input_dim: int, generator: torch.Generator | None) -> Waves | None:
    """The spectral measure of a stationary kernel: its variance, and draws of frequencies."""
    from gpytorch import kernels as gk

    if type(kernel) is gk.ProductKernel:
        # The spectral measure of a product is the convolution of the measures.
        parts = [_features(part, columns, input_dim, generator) for part in kernel.kernels]
        waves = [part[0] for part in parts if part and len(part) == 1 and isinstance(part[0], Waves)]
        if len(waves) < len(parts):
            return None
        variance, frequencies = waves[0].variance, waves[0].frequencies
        for wave in waves[1:]:
            variance, frequencies = variance * wave.variance, frequencies + wave.frequencies
        return Waves(variance, frequencies)
    if type(kernel) is gk.ConstantKernel:
        constant = kernel.constant.reshape(-1)
        return Waves(constant, constant.new_zeros(len(constant), NUM_FEATURES // 2, input_dim))
    if type(kernel) not in (gk.RBFKernel, gk.MaternKernel, gk.RQKernel, gk.PeriodicKernel):
        return None
    lengthscale = kernel.lengthscale.reshape(-1, 1, kernel.lengthscale.shape[-1])
    uniform = _sobol(len(columns) + 1, generator, lengthscale)
    normal = math.sqrt(2) * torch.erfinv(2 * uniform[:, 1:] - 1)
    if type(kernel) is gk.PeriodicKernel:
        # exp(cos(t) / l) is a Fourier series with Bessel weights: integer multiples of the base frequency,
        # distributed like the difference of two Poisson variables (Skellam's law).
        period = kernel.period_length.reshape(-1, 1, kernel.period_length.shape[-1])
        rate = (0.5 / lengthscale).expand(-1, NUM_FEATURES // 2, len(columns))
        with rnd.forked(generator):
            order = torch.poisson(rate) - torch.poisson(rate)
        own = 2 * math.pi * order / period
    elif type(kernel) is gk.MaternKernel:
        own = normal / _gamma(uniform[:, :1], normal.new_tensor(float(kernel.nu))).sqrt() / lengthscale
    elif type(kernel) is gk.RQKernel:
        alpha = kernel.alpha.reshape(-1, 1, 1)
        own = normal * _gamma(uniform[:, :1], alpha).sqrt() / lengthscale
    else:
        own = normal / lengthscale
    frequencies = own.new_zeros(*own.shape[:-1], input_dim)
    frequencies[..., columns] = own
    return Waves(own.new_ones(own.shape[0]), frequencies)


def _sobol(dimension: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Scrambled Sobol points in the open unit cube: uniform each, with a tenth of the usual error in few dimensions.

    Their order is random, so that the points of two kernels in a product combine at random.
    """
    seed = int(rnd.integers(2**31, (), generator=generator))
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed)
    points = engine.draw(NUM_FEATURES // 2, dtype=torch.double)
    order = torch.argsort(rnd.uniform((len(points),), generator=generator, dtype=torch.double))
    # torch's points are multiples of 2^-30: half a step keeps them off zero.
    return (points[order] + 2.0**-31).to(like)


def _gamma(uniform: Tensor, shape: Tensor) -> Tensor:
    """Gamma variables of the given shape and mean one, by their quantiles."""
    from scipy.special import gammaincinv

    value = gammaincinv(shape.detach().cpu().numpy(), uniform.cpu().numpy())
    return torch.as_tensor(value, dtype=uniform.dtype, device=uniform.device) / shape


class FeaturePaths:
    """Zero-mean functions with random features: X ``n x d -> S x n``."""

    def __init__(self, terms: list[Waves | Lines], count: int, like: Tensor, generator: torch.Generator | None):
        self.terms = terms
        self.weights = [rnd.normal((count, term.size), generator=generator, like=like) for term in terms]

    def __call__(self, X: Tensor) -> Tensor:
        total = X.new_zeros(self.weights[0].shape[0], X.shape[0])
        for term, weights in zip(self.terms, self.weights, strict=True):
            features = term(X)
            if features.shape[0] == 1:
                total = total + weights @ features[0].mT
            else:
                total = total + (features @ weights.unsqueeze(-1)).squeeze(-1)
        return total


class GridPaths:
    """Zero-mean functions drawn on a Sobol grid, with the conditional mean between its points.

    The box of the grid is [-1, 1]^d, widened to hold the data. At every call the variance that the
    conditional mean lacks is measured, and raises above two per cent of the prior's.
    """

    def __init__(self, kernel: Any, box: Tensor, count: int, generator: torch.Generator | None):
        self.kernel, low, high = kernel, box[0], box[1]
        seed = int(rnd.integers(2**31, (), generator=generator))
        engine = torch.quasirandom.SobolEngine(box.shape[-1], scramble=True, seed=seed)
        points = engine.draw(NUM_GRID_POINTS + 256, dtype=torch.double).to(box)
        points = low + (high - low) * points
        self.grid = points[:NUM_GRID_POINTS]
        prior = covariance(kernel, self.grid)
        self.scale = prior.diagonal().mean()
        self.factor = cholesky(prior, quiet=True)
        self.z = rnd.normal((count, NUM_GRID_POINTS), generator=generator, like=box)
        self(points[NUM_GRID_POINTS:])  # the check, before anybody relies on the functions

    def __call__(self, X: Tensor) -> Tensor:
        projection = solve(self.factor, covariance(self.kernel, self.grid, X))
        with torch.no_grad():
            variance = self.kernel(X, diag=True)
            lost = (variance - projection.square().sum(0)) / variance.clamp_min(1e-6 * self.scale)
            lost = lost.max().item() if len(X) else 0.0
        if not lost <= MAX_LOST_VARIANCE:
            raise UnsupportedError(
                f"GaussianProcess.sample_functions: {type(self.kernel).__name__} has no random features, and functions "
                f"drawn on a grid of {NUM_GRID_POINTS} points lose up to {lost:.1%} of the variance here (at most "
                f"{MAX_LOST_VARIANCE:.0%} may be lost); use sample(X, ...), which is exact, or scale inputs to [-1, 1]"
            )
        return self.z @ projection


def draw_functions(process: Any, count: int, generator: torch.Generator | None) -> Callable[[Tensor], Tensor]:
    """Draw `count` functions of a GaussianProcess in double precision: X ``... x n x d -> S x ... x n x m``."""
    outcomes = [_draw_outcome(process, k, count, generator) for k in range(process.output_dim)]
    rows = max(1, _CHUNK // (NUM_FEATURES * (count if process.hyperprior else 1)))

    def evaluate(X: Tensor) -> Tensor:
        flat = X.reshape(-1, X.shape[-1])
        chunks = [torch.stack([outcome(x) for outcome in outcomes], -1) for x in flat.split(rows)]
        return torch.cat(chunks, -2).reshape(count, *X.shape[:-1], len(outcomes))

    return evaluate


def _draw_outcome(process: Any, k: int, count: int, generator: torch.Generator | None) -> Callable[[Tensor], Tensor]:
    kernel, mean = process.kernels[k], process.means[k]
    if process.hyperprior:
        kernel, mean = drawn(kernel, mean, process.hyperprior, count, generator)
    like = torch.empty(0, dtype=process.dtype, device=process.device)
    terms = random_features(kernel, process.input_dim, generator)
    path: FeaturePaths | GridPaths
    if terms is not None:
        path = FeaturePaths(terms, count, like, generator)
    elif process.hyperprior:
        raise UnsupportedError(
            f"GaussianProcess.sample_functions: {type(kernel).__name__} has no random features, so functions with "
            "hyper-parameters of their own cannot be drawn; use sample(X, ...) or sample_tasks(X)"
        )
    else:
        path = GridPaths(kernel, _box(process, like), count, generator)

    def prior(X: Tensor) -> Tensor:
        centre = 0.0 if mean is None else mean(X.expand(count, *X.shape) if process.hyperprior else X)
        return path(X) + centre

    if process.train_X is None:
        return prior
    X, Y, noise = process.train_X, process.train_Y[:, k], process.noise_variance[:, k]
    factor = process.factor[k]
    error = noise.sqrt() * rnd.normal((count, len(X)), generator=generator, like=like)
    residual = solve(factor, (Y - prior(X) - error).mT)
    update = torch.linalg.solve_triangular(factor.mT, residual, upper=True)
    return lambda x: prior(x) + (covariance(kernel, x, X) @ update).mT


def _box(process: Any, like: Tensor) -> Tensor:
    low, high = like.new_full((process.input_dim,), -1.0), like.new_full((process.input_dim,), 1.0)
    if process.train_X is not None and len(process.train_X):
        low, high = torch.minimum(low, process.train_X.amin(0)), torch.maximum(high, process.train_X.amax(0))
    return torch.stack([low, high])
