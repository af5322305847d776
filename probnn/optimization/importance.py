"""Which parameters matter: Sobol indices of functions drawn from a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError, ShapeError
from ..process import EmpiricalProcess
from ..surrogates import ProcessModel
from ..surrogates.paths import ProcessPaths
from .choices import Categorical
from .loop import BayesianOptimization
from .parameters import Number, Parameter
from .space import Space

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONSTANT = 1e-12  # of the largest value: what varies less does so by rounding


@dataclass(frozen=True, eq=False)
class FactorImportance:
    """Sobol indices of each parameter, for each of S functions.

    Args:
        names: The parameters.
        first: First-order indices ``S x d``: shares of the variance that a parameter explains alone.
        total: Total indices ``S x d``: shares that it takes part in, with interactions.
        std: Standard deviation of each function over the space, of length S, in the units of the outcome.
        outcome: Name of the outcome, or "".

    Example:
        >>> import torch
        >>> one = torch.tensor([[0.7, 0.2]])
        >>> found = FactorImportance(("a", "b"), one, one, torch.ones(1), "y")
        >>> [round(x, 2) for x in found.intervals(0.9)[1].tolist()]
        [0.7, 0.2]
    """

    names: tuple[str, ...]
    first: Tensor
    total: Tensor
    std: Tensor
    outcome: str = ""

    def intervals(self, prob: float = 0.9) -> Tensor:
        """Lower end, median and upper end of each total index over the functions, ``3 x d``."""
        validation.positive("FactorImportance.intervals", "prob", prob, maximum=1)
        levels = torch.tensor([(1 - prob) / 2, 0.5, (1 + prob) / 2], dtype=self.total.dtype)
        return self.total.quantile(levels, dim=0)

    def plot(self, ax: Axes | None = None) -> Axes:
        """See :func:`probnn.plots.plot_importance`."""
        from ..plots import plot_importance

        return plot_importance(self, ax=ax)


def sobol_indices(
    function: Callable[[Tensor], Tensor], space: Space, *, num_points: int = 512, seed: int = 0, outcome: str = ""
) -> FactorImportance:
    r"""First-order and total Sobol indices of functions over a space.

    All parameters vary independently: numbers uniformly over their range (on the logarithm where ``log``; on
    a grid every value is equally likely, and where both, the value nearest to such a number), categories with equal
    probabilities. Constraints between parameters are not looked at, since the variance of dependent
    parameters cannot be divided up in this way. With independent points A and B (``num_points`` each, halves of one
    scrambled Sobol sequence) and :math:`A_B^{(i)}`, which is A with parameter i from B,

    .. math::
        S_i = \frac{\frac1N \sum_n f(B)_n \left(f(A_B^{(i)})_n - f(A)_n\right)}{V(f)},
        \qquad
        S_{T,i} = \frac{\frac1{2N} \sum_n \left(f(A)_n - f(A_B^{(i)})_n\right)^2}{V(f)}

    (Sobol, 2001; the first by Saltelli et al., 2010, about the mean of f; the second by Jansen, 1999). The
    estimates have an error, so a first-order index can come out a little below zero or above its total index. A
    function that is constant has all indices zero.

    Args:
        function: From features ``n x D`` (of :meth:`Space.features`) to the values of S functions, ``S x n``.
        space: The space.
        num_points: N, a power of two for the best balance.
        seed: Seed of the points.
        outcome: Name of what the function gives.

    Returns:
        The indices, one set a function.

    Raises:
        ShapeError: `function` returns another shape.

    Example:
        >>> import torch
        >>> from probnn.optimization import Real, Space
        >>> from probnn.optimization.importance import sobol_indices
        >>> found = sobol_indices(lambda X: (X[:, 0] + 2 * X[:, 1])[None], Space(a=Real(0, 1), b=Real(0, 1)))
        >>> [round(s, 2) for s in found.total[0].tolist()]
        [0.2, 0.8]
    """
    where = "sobol_indices"
    validation.positive_int(where, "num_points", num_points, 2)
    rnd.check_seed(where, seed)
    d = len(space)
    engine = torch.quasirandom.SobolEngine(2 * d, scramble=True, seed=seed % 2**31)
    points = _spread(space, engine.draw(num_points, dtype=torch.double).reshape(num_points, 2, d))
    A, B = points[:, 0], points[:, 1]
    f_A, f_B = (_values(where, function, space, X) for X in (A, B))
    both = torch.cat([f_A, f_B], -1)
    centre, variance = both.mean(-1, keepdim=True), both.var(-1, correction=0)
    constant = variance <= (CONSTANT * both.abs().amax(-1)) ** 2
    first, total = [], []
    for i in range(d):
        mixed = A.clone()
        mixed[:, i] = B[:, i]
        change = _values(where, function, space, mixed) - f_A
        first.append(((f_B - centre) * change).mean(-1) / variance)
        total.append(change.square().mean(-1) / (2 * variance))
    S, T = (torch.stack(x, -1).masked_fill(constant.unsqueeze(-1), 0.0) for x in (first, total))
    return FactorImportance(tuple(space.free), S, T, variance.sqrt(), outcome)


def factor_importance(
    source: BayesianOptimization | ProcessModel,
    space: Space | None = None,
    *,
    outcome: str | None = None,
    num_draws: int = 256,
    num_points: int = 512,
    seed: int = 0,
) -> FactorImportance:
    r"""Sobol indices of functions drawn from a model: how much each parameter matters, and how surely.

    See :func:`sobol_indices`, which each draw goes through with the same points. A category is one
    parameter, whatever the number of its columns. The spread over draws is the uncertainty of the model about the
    function; noise is no part of it.

    Args:
        source: An optimisation with measured trials, or a model over the features of `space`.
        space: The space, where `source` is a model; an optimisation brings its own.
        outcome: Name of an outcome of the optimisation; None: the first target.
        num_draws: Number S of functions.
        num_points: Number N of points; the model is evaluated at N (d + 2).
        seed: Seed of functions and points.

    Returns:
        The indices, one set a draw.

    Raises:
        DomainError: `source` is something else, nothing is measured, or there is no such outcome.
        UnsupportedError: The surrogate knows no functions, or is random search.

    Example:
        >>> from probnn.optimization import BayesianOptimization, Real, Space
        >>> from probnn.optimization.importance import factor_importance
        >>> bo = BayesianOptimization(Space(x=Real(-1, 1), idle=Real(0, 1)), minimize="loss", surrogate="gp")
        >>> _ = bo.run(lambda x, idle: 3 * x, 6)
        >>> low, median, high = factor_importance(bo, num_draws=32, num_points=64).intervals()
        >>> bool(median[0] > median[1])
        True
    """
    where = "factor_importance"
    validation.positive_int(where, "num_draws", num_draws)
    if isinstance(source, BayesianOptimization):
        if space is not None:
            raise DomainError(f"{where}: an optimisation brings its own space; leave space out")
        names = source.goals.outcomes
        name = names[0] if outcome is None else outcome
        if name not in names:
            raise DomainError(f"{where}: outcome must be one of {', '.join(map(repr, names))}, got {outcome!r}")
        model, space = source.models()[names.index(name)], source.model_space
    elif isinstance(source, ProcessModel):
        if not isinstance(space, Space) or outcome is not None:
            raise DomainError(f"{where}: a model needs space=, and no outcome=")
        model, name = source, ""
        inside = model.process.input_dim
        if inside != space.num_features:
            raise ShapeError(f"{where}: the model has {inside} inputs and the space {space.num_features} features")
    else:
        raise DomainError(f"{where}: expected a BayesianOptimization or a ProcessModel, got a {type(source).__name__}")
    functions = _draws(model, num_draws, rnd.generator_from(rnd.check_seed(where, seed)))
    sign = source.goals.sign(name) if isinstance(source, BayesianOptimization) else 1.0
    with torch.no_grad():
        return sobol_indices(lambda X: sign * functions(X), space, num_points=num_points, seed=seed, outcome=name)


def _draws(model: ProcessModel, num_draws: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Functions of features ``n x D`` with values ``S x n``, in the units of the model's data."""
    process = model.process
    if model.num_outputs != 1:
        raise DomainError(
            f"factor_importance: needs a model of one outcome, got {model.num_outputs}; use model.subset_output"
        )
    if isinstance(process, EmpiricalProcess):
        with rnd.forked(generator):
            return ProcessPaths(model, torch.Size([num_draws]))
    functions = process.sample_functions((num_draws,), generator=generator)

    def evaluate(X: Tensor) -> Tensor:
        inside = model._transformed("functions", X)
        values = functions(inside)
        if process.likelihood is not None:
            values = process.likelihood.moments(values, values.new_zeros(1, process.likelihood.num_parameters))[0]
        if hasattr(model, "outcome_transform"):
            values, _ = model.outcome_transform.untransform(values, X=inside)
        if model._outputs is not None:
            values = values[..., list(model._outputs)]
        return values.squeeze(-1)

    return evaluate


def _values(where: str, function: Callable[[Tensor], Tensor], space: Space, coordinates: Tensor) -> Tensor:
    values = function(space.features(coordinates))
    if values.ndim != 2 or values.shape[-1] != len(coordinates):
        raise ShapeError(f"{where}: the function must return shape (S, {len(coordinates)}), got {tuple(values.shape)}")
    return validation.tensor(where, "the values of the function", values)


def _spread(space: Space, u: Tensor) -> Tensor:
    """Coordinates of settable values from uniform numbers ``... x d``."""
    columns = [_settable(p, u[..., i]) for i, p in enumerate(space.free.values())]
    return torch.stack(columns, -1)


def _settable(parameter: Parameter, u: Tensor) -> Tensor:
    count = parameter.num_values
    if count is None:
        return u
    index = (u * count).floor().clamp_max(count - 1)
    if isinstance(parameter, Number):
        if parameter.log:
            wanted = [parameter.coordinate(parameter.nearest(c)) for c in u.flatten().tolist()]
            return torch.tensor(wanted, dtype=u.dtype).reshape(u.shape)
        end = parameter.coordinate(parameter.level(count - 1))
        return index * end / max(count - 1, 1)
    if isinstance(parameter, Categorical) and parameter.ordered:
        return index / (count - 1)
    return index
