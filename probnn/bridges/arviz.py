"""ArviZ: draws as labelled groups. The only module that imports ArviZ, and only when it is called."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from .._version import __version__
from ..errors import DomainError, UnsupportedError
from ..likelihoods import Gaussian, Likelihood
from ..process import EmpiricalProcess, StochasticProcess

if TYPE_CHECKING:
    import pandas

Variables = dict[str, tuple[tuple[str, ...], Tensor]]  # by name: dimensions and values

_SAMPLE = ("chain", "draw")
# ArviZ's names of what samplers keep in `FitInfo.trace`, one value a draw.
_STATS = {
    "energy": "energy",
    "acceptance": "acceptance_rate",
    "divergent": "diverging",
    "log_prob": "lp",
    "num_leapfrog": "n_steps",
    "step_size": "step_size",
}


def to_arviz(
    posterior: EmpiricalProcess,
    *,
    X_test: Tensor | None = None,
    X: Tensor | None = None,
    Y: Tensor | None = None,
    noise_variance: Tensor | None = None,
    include_parameters: bool = False,
    num_prior: int = 256,
    seed: int = 0,
) -> Any:
    """Draws as ArviZ groups, for its diagnostics, model comparison and plots.

    Diagnose the function values ``f``: the single weights of a network are not identified (hidden
    units may change places), so their chains may disagree where the functions do not.

    The groups, with their variables and dimensions beside chain and draw:

    - ``posterior``: ``f`` at X_test (point, channel); the likelihood's parameters under their natural names,
      such as ``noise``; with `include_parameters` also the blocks of theta under their names in the layout;
    - ``sample_stats``: energy, acceptance_rate, diverging, lp, n_steps and step_size, as far as the sampler kept them;
    - ``posterior_predictive``: new outcomes ``Y_test`` at X_test (point, outcome) and ``Y`` at X (row, outcome);
    - ``log_likelihood``: ``Y`` (row), the log density of each row of Y, all its outcomes together; not of a tempered
      posterior, of which ArviZ's leave-one-out would be wrong (``likelihood_temperature`` is an attribute of every
      group);
    - ``prior``: ``f`` and the likelihood's parameters, drawn from the prior (one chain);
    - ``observed_data``: ``Y`` (row, outcome), and ``constant_data``: ``X`` (row, input), ``X_test`` (point, input).

    Args:
        posterior: Draws of equal weight. A process in closed form is frozen first, ``process.draws()``;
            weighted draws are resampled first, ``posterior.thin(num_draws)`` (one chain, whose order
            means nothing: good for plots, not for R-hat).
        X_test: Inputs ``n* x d`` at which function values are wanted; None: those of X.
        X: Inputs ``n x d`` of the data; together with Y.
        Y: Outcomes ``n x m`` of the data.
        noise_variance: Known noise variances of the data, ``n x m`` (Gaussian likelihoods).
        include_parameters: Add the coordinates theta.
        num_prior: Number of prior draws; 0: no prior group.
        seed: Of the new outcomes and the prior draws.

    Returns:
        ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with ArviZ 1.

    Raises:
        DomainError: Not an EmpiricalProcess; X without Y or the reverse; nothing to export; a block of
            theta has the name of another variable.
        UnsupportedError: The draws are weighted, or Y is given and the process has no likelihood.
        ShapeError, NonFiniteError: The tensors do not fit the process.

    Example:
        >>> import torch, probnn
        >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=2, hidden=(5,)), probnn.priors.NormalWeights())
        >>> tree = prior.draws(100).to_arviz(X_test=torch.zeros(7, 2))
        >>> dict(tree["posterior"]["f"].sizes)
        {'chain': 1, 'draw': 100, 'point': 7, 'channel': 1}
    """
    where = "to_arviz"
    likelihood = _check(where, posterior, X, Y, noise_variance)
    if num_prior != 0:
        validation.positive_int(where, "num_prior", num_prior)
    points = X if X_test is None else X_test
    if points is not None:
        _inputs(where, posterior, points)
    generator = rnd.generator_from(rnd.check_seed(where, seed), device=posterior.device)
    chains = posterior.theta.shape[:2]
    groups: dict[str, Variables] = {name: {} for name in _GROUPS}
    temperature = getattr(posterior.info, "temperature", 1.0)
    with torch.no_grad():
        if points is not None:
            f, psi = posterior._channels(points)
            groups["posterior"]["f"] = ((*_SAMPLE, "point", "channel"), f.unflatten(0, chains))
        groups["posterior"] |= _natural(posterior, posterior.psi)
        if X_test is not None:
            groups["constant_data"]["X_test"] = (("point", "input"), X_test)
            if likelihood is not None:
                drawn = likelihood.sample(f, psi, generator=generator).unflatten(0, chains)
                groups["posterior_predictive"]["Y_test"] = ((*_SAMPLE, "point", "outcome"), drawn)
        if X is not None and Y is not None and likelihood is not None:
            f, psi = posterior._channels(X)
            fit = likelihood.log_prob(Y, f, psi, noise_variance).unflatten(0, chains)
            law = likelihood if noise_variance is None else Gaussian(noise=noise_variance.sqrt())
            drawn = law.sample(f, psi, generator=generator).unflatten(0, chains)
            if temperature == 1:
                groups["log_likelihood"]["Y"] = ((*_SAMPLE, "row"), fit)
            groups["posterior_predictive"]["Y"] = ((*_SAMPLE, "row", "outcome"), drawn)
            groups["observed_data"]["Y"] = (("row", "outcome"), Y)
            groups["constant_data"]["X"] = (("row", "input"), X)
        if include_parameters:
            _add_parameters(where, groups["posterior"], posterior)
        if num_prior:
            groups["prior"] |= _prior(posterior, points, num_prior, generator)
    groups["sample_stats"] |= _sample_stats(posterior)
    if not groups["posterior"]:
        raise DomainError(
            f"{where}: nothing to export; give X_test, the inputs at which function values are wanted, "
            "or include_parameters=True"
        )
    return _container({name: variables for name, variables in groups.items() if variables}, temperature)


def arviz_summary(data: Any, *, prob: float = 0.9, var_names: Sequence[str] | None = None) -> pandas.DataFrame:
    """ArviZ's table of the posterior group: mean, sd, interval, Monte Carlo error, ESS and R-hat.

    The interval is the highest-density one with a probability said aloud, because what ArviZ takes
    when nothing is said changed from 0.94 to 0.89 between its versions. What cannot be computed has no column: R-hat
    needs two chains, and the ESS, the Monte Carlo error and R-hat need four draws a chain, so that the table of an
    ensemble, whose members are chains of one draw, has mean, sd and interval alone.

    Args:
        data: What :func:`to_arviz` returned.
        prob: Probability of the interval.
        var_names: Variables to show, or the one; with ArviZ's ``"~"`` in front, variables to leave out. None: all.

    Returns:
        A data frame, one row a scalar, not rounded. The names of the interval's two columns are ArviZ's.

    Raises:
        DomainError: `data` has no posterior group, `prob` is not between 0 and 1, or there is no variable of such a
            name.

    Example:
        >>> import torch, probnn
        >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=2, hidden=(5,)), probnn.priors.NormalWeights())
        >>> table = arviz_summary(prior.draws(100).to_arviz(X_test=torch.zeros(2, 2)), prob=0.8)
        >>> table.index.tolist(), "ess_bulk" in table, "r_hat" in table  # one chain has no R-hat
        (['f[0, 0]', 'f[1, 0]'], True, False)
    """
    where = "arviz_summary"
    prob = validation.probability(where, "prob", prob)
    group = _posterior_group(where, data)
    names = None if var_names is None else [var_names] if isinstance(var_names, str) else list(var_names)
    unknown = [name for name in names or [] if str(name).removeprefix("~") not in group]
    if unknown:
        raise DomainError(f"{where}: no variables {unknown} in the posterior group; it has {sorted(group.data_vars)}")
    arviz, trees = _arviz()
    interval = {"ci_prob": prob, "ci_kind": "hdi"} if trees else {"hdi_prob": prob}
    kind = {} if group.sizes["draw"] >= 4 else {"kind": "stats"}
    with _without_shape_complaints():
        table = arviz.summary(data, var_names=names, round_to="none", **kind, **interval)
    return table if group.sizes["chain"] > 1 else table.drop(columns="r_hat", errors="ignore")


def _posterior_group(where: str, data: Any) -> Any:
    """The posterior of labelled groups, with its chains and draws."""
    import xarray

    arviz, trees = _arviz()
    kind = xarray.DataTree if trees else arviz.InferenceData
    if not isinstance(data, kind):
        hint = "posterior.to_arviz(X_test=...)" if isinstance(data, StochasticProcess) else "what to_arviz returns"
        raise DomainError(f"{where}: data must be labelled groups of draws, got a {type(data).__name__}; give {hint}")
    if "posterior" not in data or not {"chain", "draw"} <= set(data["posterior"].sizes):
        raise DomainError(f"{where}: data has no posterior group with chains and draws; give what to_arviz returns")
    return data["posterior"]


@contextlib.contextmanager
def _without_shape_complaints() -> Iterator[None]:
    """Keep ArviZ 0.x from logging that one chain has no R-hat: the table says so by having no such column."""
    logger = logging.getLogger("arviz")

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Shape validation failed")

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


_GROUPS = (
    "posterior", "sample_stats", "posterior_predictive", "log_likelihood", "prior", "observed_data", "constant_data",
)  # fmt: skip


def _check(where: str, posterior: Any, X: Any, Y: Any, noise_variance: Any) -> Likelihood | None:
    if not isinstance(posterior, EmpiricalProcess):
        raise DomainError(
            f"{where}: posterior must be an EmpiricalProcess, got a {type(posterior).__name__}; "
            "freeze draws of a parametric process first, process.draws(num_draws)"
        )
    if posterior.log_weights is not None:
        raise UnsupportedError(
            f"{where}: ArviZ knows no weighted draws; resample them first, posterior.thin(num_draws).to_arviz(...)"
        )
    if (X is None) != (Y is None) or (noise_variance is not None and Y is None):
        raise DomainError(f"{where}: X, Y (and noise_variance) are the data: give X and Y together, or X_test alone")
    likelihood = posterior.likelihood
    if Y is None:
        return likelihood
    if likelihood is None:
        raise UnsupportedError(f"{where}: the process has no likelihood, so nothing can be said about Y; leave it out")
    _inputs(where, posterior, X)
    validation.outcomes(where, "Y", Y, X, posterior.num_outcomes, batched=False)
    likelihood.check_outcomes(where, Y)
    if noise_variance is not None:
        validation.variances(where, noise_variance, X, posterior.num_outcomes)
        likelihood.given_noise(noise_variance)  # refuses every likelihood but the Gaussian
    return likelihood


def _inputs(where: str, posterior: EmpiricalProcess, X: Any) -> None:
    validation.inputs(where, X, posterior.input_dim, like=posterior, batched=False)


def _natural(posterior: EmpiricalProcess, psi: Tensor) -> Variables:
    """The likelihood's parameters; single numbers without a dimension of their own."""
    if posterior.likelihood is None:
        return {}
    out: Variables = {}
    for name, value in posterior.likelihood.constrain(psi).items():
        value = value.squeeze(-1) if value.shape[2:] == (1,) else value
        per_outcome = value.shape[2:] == (posterior.num_outcomes,)
        out[name] = ((*_SAMPLE, *(("outcome",) if per_outcome else _own_dims(name, value))), value)
    return out


def _own_dims(name: str, value: Tensor) -> tuple[str, ...]:
    return tuple(f"{name}_dim_{i}" for i in range(value.ndim - 2))


def _add_parameters(where: str, variables: Variables, posterior: EmpiricalProcess) -> None:
    blocks = posterior.layout.unflatten(posterior.theta)
    taken = sorted(blocks.keys() & variables.keys())
    if taken:
        raise DomainError(f"{where}: the parameters {taken} have names of other variables; rename them in the network")
    variables |= {name: ((*_SAMPLE, *_own_dims(name, value)), value) for name, value in blocks.items()}


def _prior(posterior: EmpiricalProcess, points: Tensor | None, num_draws: int, generator: torch.Generator) -> Variables:
    out: Variables = {}
    prior, likelihood = posterior.prior, posterior.likelihood
    if points is not None and prior is not None:
        out["f"] = ((*_SAMPLE, "point", "channel"), prior.sample(points, (1, num_draws), generator=generator))
    if likelihood is not None:
        psi = likelihood.sample_prior(
            (1, num_draws), generator=generator, dtype=posterior.dtype, device=posterior.device
        )
        out |= _natural(posterior, psi)
    return out


def _sample_stats(posterior: EmpiricalProcess) -> Variables:
    """What the sampler kept of every draw that is here; after `thin` its trace speaks of other draws."""
    shape, info = posterior.theta.shape[:2], posterior.info
    trace = getattr(info, "trace", {})
    stats = {ours: trace[ours] for ours in _STATS if ours in trace and trace[ours].shape == shape}
    if not stats:
        return {}
    # What all chains have in common stands once in the trace, or in the info.
    common = {"num_leapfrog": trace.get("num_leapfrog"), "step_size": getattr(info, "step_size", None)}
    for ours, value in common.items():
        value = None if value is None else torch.as_tensor(value)
        if value is not None and value.shape in ((), shape[1:]):
            stats.setdefault(ours, value.expand(shape))
    return {_STATS[name]: (_SAMPLE, value.bool() if name == "divergent" else value) for name, value in stats.items()}


def _container(groups: dict[str, Variables], temperature: float) -> Any:
    """Labelled groups as the installed ArviZ wants them."""
    import numpy
    import xarray

    attributes = {
        "inference_library": "probnn",
        "inference_library_version": __version__,
        "likelihood_temperature": float(temperature),
    }
    datasets = {}
    for group, variables in groups.items():
        arrays = {name: (dims, x.detach().cpu().numpy()) for name, (dims, x) in variables.items()}
        sizes = {dim: n for dims, x in arrays.values() for dim, n in zip(dims, x.shape, strict=True)}
        labels = {dim: numpy.arange(n) for dim, n in sizes.items()}
        datasets[group] = xarray.Dataset(arrays, coords=labels, attrs=attributes)
    arviz, trees = _arviz()
    return xarray.DataTree.from_dict(datasets) if trees else arviz.InferenceData(**datasets)


def _arviz() -> tuple[Any, bool]:
    """ArviZ, and whether it is version 1, which has xarray's trees in place of InferenceData."""
    with warnings.catch_warnings():
        # Version 0 announces version 1 to whoever imports it; this module serves both.
        warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing a major refactor", category=FutureWarning)
        import arviz

    return arviz, int(arviz.__version__.split(".")[0]) >= 1
