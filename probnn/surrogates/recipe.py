"""Recipes: from data to a BoTorch model in one call."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from botorch.models.transforms.input import AffineInputTransform
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError, ShapeError
from ..inference import HMC, SGHMC, DeepEnsemble, Exact, InferenceMethod, Laplace, MeanFieldVI
from ..likelihoods import Gaussian, Likelihood
from ..moe import GaussianMixture, MoEPrior, PolynomialExpert, WeightedBootstrap
from ..priors import BNNPrior, GPPrior
from ..process import StochasticProcess
from . import _state
from .functional import MatchedPrior
from .model import ProcessModel

# build(X, Y, *, noise_variance, seed, init) -> process
Build = Callable[..., StochasticProcess]


@dataclass(frozen=True)
class Inferred:
    """The usual way to build a process: infer it from a prior, a likelihood and the data.

    Args:
        prior: Makes the prior for ``(input_dim, channels)``. A dataclass such as :class:`probnn.priors.BNNPrior`
            with a ``__call__``, never a lambda: recipes are compared, hashed and pickled.
        likelihood: The likelihood; an inferred noise becomes one for each outcome.
        method: The inference method.

    Raises:
        DomainError: The prior is a process or a class and not what makes processes, or the others are of another type.

    Example:
        >>> import probnn
        >>> from probnn.surrogates import Inferred, Surrogate
        >>> build = Inferred(probnn.priors.BNNPrior(hidden=(20,)), probnn.likelihoods.Gaussian(), probnn.Laplace())
        >>> Surrogate(build) == Surrogate(build)
        True
    """

    prior: Callable[[int, int], StochasticProcess]
    likelihood: Likelihood
    method: InferenceMethod

    def __post_init__(self) -> None:
        prior: Any = self.prior
        expected = "Inferred: prior must make the prior for (input_dim, channels), such as probnn.priors.BNNPrior()"
        if isinstance(prior, type):
            raise DomainError(f"{expected}; got the class {prior.__name__}, give {prior.__name__}(...)")
        if not callable(prior):
            raise DomainError(
                f"{expected}; got a {type(prior).__name__}"
                + (", whose dimensions are fixed already" if isinstance(prior, StochasticProcess) else "")
            )
        for name, value, kind in (
            ("likelihood", self.likelihood, Likelihood),
            ("method", self.method, InferenceMethod),
        ):
            if not isinstance(value, kind):
                got = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
                raise DomainError(f"Inferred: {name} must be an object of a {kind.__name__} class, got {got}")

    def __call__(
        self,
        X: Tensor,
        Y: Tensor,
        *,
        noise_variance: Tensor | None = None,
        seed: int = 0,
        init: StochasticProcess | None = None,
    ) -> StochasticProcess:
        """The posterior given X ``n x d`` and Y ``n x m``."""
        m = Y.shape[-1]
        likelihood = self.likelihood.expand(m)
        prior = self.prior(X.shape[-1], likelihood.channels(m))
        return self.method.fit(prior, likelihood, X, Y, noise_variance=noise_variance, seed=seed, init=init)


@dataclass(frozen=True)
class Surrogate:
    """A recipe for BoTorch models: how inputs and outcomes are scaled, and how the process is built.

    Args:
        build: Called as ``build(X, Y, *, noise_variance, seed, init)`` with scaled double or single precision data
            ``n x d`` and ``n x m``; returns a process. Usually :class:`Inferred`.
        input_transform: The interval every input is mapped to, ``(-1, 1)`` by default because network priors are
            made for it; None leaves inputs alone.
        outcome_transform: ``"standardize"`` gives every outcome mean 0 and variance 1; None leaves outcomes alone,
            as counts and classes need it.
        num_draws: Draws kept of a parametric process; see :class:`ProcessModel`.

    Raises:
        DomainError: An argument is out of its range.

    Example:
        >>> import torch, probnn
        >>> X = torch.rand(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
        >>> bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.double)
        >>> model = probnn.get_surrogate("gp").fit(X, X.sum(-1, keepdim=True), bounds=bounds)
        >>> tuple(model.posterior(torch.zeros(4, 3, 2).double()).mean.shape)
        (4, 3, 1)
    """

    build: Build
    input_transform: tuple[float, float] | None = (-1.0, 1.0)
    outcome_transform: str | None = "standardize"
    num_draws: int = 256

    def __post_init__(self) -> None:
        if not callable(self.build):
            raise DomainError(f"Surrogate: build must be callable, such as an Inferred, got {self.build!r}")
        if self.outcome_transform not in ("standardize", None):
            raise DomainError(
                f"Surrogate: outcome_transform must be 'standardize' or None, got {self.outcome_transform!r}"
            )
        if self.outcome_transform is not None and isinstance(self.build, Inferred):
            _check_real(self.build.likelihood)
        if self.input_transform is not None:
            try:
                low, high = (float(v) for v in self.input_transform)
            except (TypeError, ValueError):
                low = high = 0.0
            if not low < high:
                raise DomainError(
                    f"Surrogate: input_transform must be an interval such as (-1, 1) or None, "
                    f"got {self.input_transform!r}"
                )
            object.__setattr__(self, "input_transform", (low, high))
        object.__setattr__(self, "num_draws", validation.positive_int("Surrogate", "num_draws", self.num_draws))

    def fit(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        train_Yvar: Tensor | None = None,
        *,
        bounds: Tensor | None = None,
        seed: int = 0,
        init: ProcessModel | StochasticProcess | None = None,
    ) -> ProcessModel:
        """Fit the surrogate.

        Args:
            train_X: Inputs ``n x d``, in the units of the problem. Rows outside the bounds are legal.
            train_Y: Outcomes ``n x m``, dtype and device of `train_X`.
            train_Yvar: Known noise variances ``n x m``; None: the likelihood's noise.
            bounds: The box of the inputs, ``2 x d``; None: the range of the data.
            seed: Same seed, same machine: the same model. Torch's global stream is left alone.
            init: A model this recipe made before (or a process), as a warm start.

        Returns:
            A BoTorch model of the outcomes in their own units.

        Raises:
            ShapeError, DomainError, NonFiniteError: The data do not fit together; the message says how.
        """
        where = "Surrogate.fit"
        seed = rnd.check_seed(where, seed)
        X, Y = train_X, train_Y
        d, m = _columns(where, "train_X", X, "d"), _columns(where, "train_Y", Y, "m")
        validation.inputs(where, X, d, batched=False, name="train_X")
        validation.outcomes(where, "train_Y", Y, X, m, batched=False)
        if train_Yvar is not None:
            validation.outcomes(where, "train_Yvar", train_Yvar, X, m, batched=False)
            validation.variances(where, train_Yvar, X, m, name="train_Yvar")
        if bounds is not None:
            _check_bounds(where, bounds, X)
        if init is not None and not isinstance(init, (ProcessModel, StochasticProcess)):
            raise DomainError(f"{where}: init must be a ProcessModel or a process, got a {type(init).__name__}")
        scale = None if self.input_transform is None else _box(where, X, bounds, self.input_transform)
        units = None if self.outcome_transform is None or len(Y) == 0 else _standardize(Y)
        inside, noise_variance = X if scale is None else scale(X), train_Yvar
        if units is not None:
            Y, noise_variance = units(Y, train_Yvar)
        start = init.source if isinstance(init, ProcessModel) else init
        process = self.build(inside, Y, noise_variance=noise_variance, seed=seed, init=start)
        if not isinstance(process, StochasticProcess):
            raise DomainError(f"{where}: build must return a StochasticProcess, got a {type(process).__name__}")
        return ProcessModel(process, num_draws=self.num_draws, input_transform=scale, outcome_transform=units)


def _check_real(likelihood: Likelihood) -> None:
    """Refuse to standardise outcomes which are not any real number."""
    try:
        likelihood.check_outcomes("", torch.tensor([[-0.5]]))
    except ShapeError:  # noise levels for several outcomes: of real ones, and there is no telling yet how many
        return
    except DomainError:
        raise DomainError(
            f"Surrogate: a {type(likelihood).__name__} likelihood cannot take standardised outcomes; "
            "set outcome_transform=None"
        ) from None


def _columns(where: str, name: str, x: Any, columns: str) -> int:
    if not torch.is_tensor(x):
        raise DomainError(
            f"{where}: {name} must be a torch tensor of shape (n, {columns}), got a {type(x).__name__}; "
            "convert it with torch.as_tensor"
        )
    if x.ndim != 2 or x.shape[-1] == 0:
        raise ShapeError(
            f"{where}: {name} must have shape (n, {columns}), got {tuple(x.shape)}; one column is [:, None]"
        )
    return x.shape[-1]


def _check_bounds(where: str, bounds: Any, X: Tensor) -> None:
    d = X.shape[-1]
    if not torch.is_tensor(bounds) or tuple(bounds.shape) != (2, d):
        got = tuple(bounds.shape) if torch.is_tensor(bounds) else f"a {type(bounds).__name__}"
        raise ShapeError(f"{where}: bounds must be a tensor of shape (2, {d}), lower above upper row, got {got}")
    validation.tensor(where, "bounds", bounds, like=X)
    if not (bounds[0] < bounds[1]).all():
        j = int((bounds[0] >= bounds[1]).nonzero()[0])
        raise DomainError(
            f"{where}: bounds must have lower < upper in every column, got {bounds[0, j]:g} and {bounds[1, j]:g} in "
            f"column {j}"
        )


def _box(where: str, X: Tensor, bounds: Tensor | None, interval: tuple[float, float]) -> AffineInputTransform:
    """The map of the box onto the interval in every coordinate."""
    if bounds is None:
        if len(X) == 0:
            raise DomainError(
                f"{where}: without data the bounds must be given; pass bounds= of shape (2, {X.shape[-1]})"
            )
        low, high = X.amin(0), X.amax(0)
        # A coordinate that never varied: unit width around its value.
        bounds = torch.stack([torch.where(high > low, low, low - 0.5), torch.where(high > low, high, low + 0.5)])
    width = (bounds[1:] - bounds[:1]) / (interval[1] - interval[0])
    return AffineInputTransform(X.shape[-1], coefficient=width, offset=bounds[:1] - interval[0] * width).eval()


def _standardize(Y: Tensor) -> Any:
    """Mean 0 and variance 1 of every outcome; constant outcomes, and single ones, keep their scale."""
    mean = Y.mean(0, keepdim=True)
    std = Y.std(0, keepdim=True) if len(Y) > 1 else torch.zeros_like(mean)
    # BoTorch compares with 1e-8 whatever the units; rounding is relative to the size of the outcomes.
    constant = std <= 100 * torch.finfo(Y.dtype).eps * Y.abs().amax(0, keepdim=True)
    return _state.standardize(mean, torch.where(constant, 1.0, std)).eval()


_recipes: dict[str, Surrogate] = {}


def register_surrogate(name: str, surrogate: Surrogate) -> None:
    """Make a recipe known under a name, to :func:`get_surrogate` and to all that takes names of surrogates.

    Args:
        name: The name; not one that stands for another recipe already.
        surrogate: The recipe.

    Raises:
        DomainError: The name is taken, or the recipe is none.

    Example:
        >>> from probnn.surrogates import get_surrogate, register_surrogate
        >>> register_surrogate("gp", get_surrogate("gp"))  # the same recipe under its name again is no error
    """
    if not isinstance(surrogate, Surrogate) or not isinstance(name, str) or not name:
        raise DomainError(f"register_surrogate: needs a name and a Surrogate, got {name!r} and {surrogate!r}")
    if _recipes.get(name, surrogate) != surrogate:
        raise DomainError(
            f"register_surrogate: {name!r} is the name of another recipe; choose one not in {available_surrogates()}"
        )
    _recipes[name] = surrogate


def get_surrogate(name: str) -> Surrogate:
    """The recipe of that name; ``dataclasses.replace`` changes parts of it.

    Args:
        name: One of :func:`available_surrogates`.

    Returns:
        The recipe.

    Raises:
        DomainError: There is no such recipe; the message lists those there are.

    Example:
        >>> from probnn.surrogates import get_surrogate
        >>> get_surrogate("gp").input_transform
        (0.0, 1.0)
    """
    if not isinstance(name, str) or name not in _recipes:
        raise DomainError(f"get_surrogate: no surrogate {name!r}; there are {', '.join(available_surrogates())}")
    return _recipes[name]


def available_surrogates() -> tuple[str, ...]:
    """The names :func:`get_surrogate` knows, sorted.

    Example:
        >>> from probnn.surrogates import available_surrogates
        >>> "gp" in available_surrogates()
        True
    """
    return tuple(sorted(_recipes))


# BoTorch's default prior of the noise: outcomes of optimisations are often exact, and a wider prior lets the noise of
# a network run off to zero, where its posterior is as narrow as its data are many.
_NOISE = Gaussian(noise_median=math.exp(-2.5), noise_spread=0.5)
# 256 draws; short trajectories and a short warm-up, because in a loop every fit starts from the one before.
_HMC = HMC(num_chains=16, num_warmup=120, num_samples=16, max_leapfrog=32, collapse_last_layer=True)
# Approximations around a mode cannot weigh up scales against each other: with few data they switch the network off and
# call everything noise. Their scales are fixed, and a Gaussian's noise is a tenth of the outcomes' spread.
_FIXED = BNNPrior(scale_prior=None)
_TENTH = Gaussian(noise=0.1)

register_surrogate("gp", Surrogate(Inferred(GPPrior(), _NOISE, Exact()), input_transform=(0.0, 1.0)))
register_surrogate("bnn-hmc", Surrogate(Inferred(BNNPrior(), _NOISE, _HMC)))
register_surrogate("bnn-functional", Surrogate(Inferred(MatchedPrior(), _NOISE, _HMC)))
# For tables whose every gradient by all rows is too dear; 256 draws.
_SGHMC = SGHMC(num_chains=8, num_samples=32, keep_every=100)
register_surrogate("bnn-sghmc", Surrogate(Inferred(BNNPrior(), _NOISE, _SGHMC)))
register_surrogate("ensemble", Surrogate(Inferred(_FIXED, Gaussian(), DeepEnsemble(size=32, anchored=True))))
register_surrogate("laplace", Surrogate(Inferred(_FIXED, _TENTH, Laplace())))
register_surrogate("vi", Surrogate(Inferred(_FIXED, _TENTH, MeanFieldVI())))
# Bowls, because planes are most optimistic in the corners of a box, where searches then stay: three linear experts were
# worse than random search in six dimensions. More experts are left without rows where the data are few.
_BOWLS = MoEPrior(num_experts=2, expert=PolynomialExpert(2, interactions=False))
register_surrogate("moe", Surrogate(Inferred(_BOWLS, GaussianMixture(2), WeightedBootstrap(size=64, max_iter=150))))
