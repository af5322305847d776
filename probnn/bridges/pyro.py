"""Pyro, both ways: a prior and a likelihood as a Pyro model, and Pyro's draws as a process.

Pyro's samplers run one chain after the other, so they are here to check the library's own and to
reach what only Pyro has (guides, effect handlers), not to replace :class:`probnn.HMC`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from .. import validation
from ..errors import DomainError, ShapeError, UnsupportedError
from ..inference import FitInfo
from ..likelihoods import Gaussian, Likelihood
from ..process import EmpiricalProcess, ParametricProcess, StochasticProcess
from ..process.base import moved

if TYPE_CHECKING:
    from pyro.infer import MCMC

# Pyro's own diagnostics need that many draws a chain.
_MIN_DRAWS = 4


def to_pyro(prior: ParametricProcess, likelihood: Likelihood) -> Callable[..., Tensor]:
    r"""The joint law of function, noise and outcomes as a Pyro model.

    The model is :math:`\theta \sim p(\theta)`, :math:`\psi \sim p(\psi)`, :math:`f = f_\theta(X)`,
    :math:`y_i \sim p(y_i \mid f_i, \psi)`, in the unconstrained coordinates that the library's own
    methods use: Pyro's potential is minus the log density of :class:`probnn.inference.Target`,
    and ``NUTS``, ``SVI`` with any autoguide and ``Predictive`` run on it (Bingham et al., 2019,
    JMLR 20(28)). Making the model draws nothing; neither it nor a run of it touches Pyro's
    parameter store (a guide keeps its own parameters there).

    Called as ``model(X, Y=None, noise_variance=None)`` it has the sites

    - ``theta``: coordinates of the process, one real vector of length P;
    - ``psi``: coordinates of the likelihood, one real vector of length R, where R > 0;
    - ``f``: the channels ``n x c``, deterministic;
    - ``Y``: the outcomes, observed unless Y is None, event of length m;

    the last two in the plate ``rows`` at dimension -1, and left out where n = 0. X is ``n x d``,
    Y is ``n x m``, and `noise_variance` ``n x m`` are known noise variances (Gaussian likelihoods),
    which take psi's place. The prior is used in the dtype and on the device of X.

    Args:
        prior: The process before the data. Sampling from it is enough for ``Predictive``; ``NUTS``
            and ``SVI`` need its density, so draws (:class:`probnn.EmpiricalProcess`) do not serve.
        likelihood: The law of Y given the function.

    Returns:
        The model. It can be pickled, as Pyro's parallel chains demand, if prior and likelihood can.

    Raises:
        UnsupportedError: The prior is not parametric.
        DomainError: Not a process, not a likelihood, or the number of channels does not fit.

    Example:
        >>> import torch, probnn
        >>> from pyro.infer import Predictive
        >>> from probnn.bridges import to_pyro
        >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=2, hidden=(5,)), probnn.priors.NormalWeights())
        >>> model = to_pyro(prior, probnn.likelihoods.Gaussian())
        >>> draws = Predictive(model, num_samples=10, parallel=True)(torch.zeros(7, 2))
        >>> {site: tuple(value.shape) for site, value in sorted(draws.items())}
        {'Y': (10, 7, 1), 'f': (10, 7, 1), 'psi': (10, 1, 1), 'theta': (10, 1, 21)}
    """
    _check_parts("to_pyro", prior, likelihood)
    return _PyroModel(prior, likelihood)


def from_pyro(
    samples: MCMC | Mapping[str, Tensor],
    prior: ParametricProcess,
    likelihood: Likelihood,
    *,
    noise_variance: Tensor | None = None,
) -> EmpiricalProcess:
    """The posterior process that Pyro's draws of ``theta`` and ``psi`` stand for.

    Args:
        samples: A finished ``pyro.infer.MCMC`` (its chains are kept apart), or tensors by site:
            ``theta`` ``S x P`` (one chain) or ``C x S x P``, and ``psi`` likewise with R in place of P.
            ``S x 1 x P``, as ``Predictive`` returns, is one chain of S draws. Other sites are left alone.
        prior: The process given to :func:`to_pyro`.
        likelihood: The likelihood given to :func:`to_pyro`.
        noise_variance: The known noise variances ``n x m`` given to the model, if any.

    Returns:
        The draws as a process, in the dtype and on the device of ``theta``. Of an MCMC run, `info`
        counts the divergences after warm-up and marks them in the trace ``"divergent"``, ``C x S``.

    Raises:
        DomainError: Neither an MCMC nor a mapping, a run that has not happened, or a site is missing.
        ShapeError: A site does not fit the prior or the likelihood, or ``theta`` does not fit ``psi``.
        NonFiniteError: NaN or infinity among the draws.

    Example:
        >>> import torch, probnn
        >>> from probnn.bridges import from_pyro
        >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=2, hidden=()), probnn.priors.NormalWeights())
        >>> draws = {"theta": torch.randn(4, 100, 3), "psi": torch.randn(4, 100, 1)}
        >>> posterior = from_pyro(draws, prior, probnn.likelihoods.Gaussian())
        >>> posterior.num_draws, tuple(posterior.predict(torch.zeros(5, 2)).mean.shape)
        (400, (5, 1))
    """
    from pyro.infer import MCMC

    _check_parts("from_pyro", prior, likelihood)
    if noise_variance is not None:
        validation.tensor("from_pyro", "noise_variance", noise_variance)
        if noise_variance.ndim != 2 or noise_variance.shape[-1] != likelihood.outcomes(prior.output_dim):
            raise ShapeError(
                f"from_pyro: noise_variance must have shape (n, {likelihood.outcomes(prior.output_dim)}), "
                f"got {tuple(noise_variance.shape)}"
            )
        likelihood = likelihood.given_noise(noise_variance)
    sites: Mapping[str, Tensor] | None
    if isinstance(samples, MCMC):
        sites = samples.get_samples(group_by_chain=True)
        if sites is None:
            raise DomainError("from_pyro: the MCMC has no draws; call its run(X, Y) first")
    elif isinstance(samples, Mapping):
        sites = {name: _one_chain(value) for name, value in samples.items()}
    else:
        raise DomainError(
            f"from_pyro: samples must be a pyro.infer.MCMC or a dictionary of tensors, got a {type(samples).__name__}"
        )
    theta = _site(sites, "theta", prior.num_parameters)
    if likelihood.num_parameters:
        psi = _site(sites, "psi", likelihood.num_parameters, like=theta)
    elif "psi" in sites:
        raise ShapeError(
            f"from_pyro: there are draws of psi, {tuple(sites['psi'].shape)}, but the {type(likelihood).__name__} "
            "likelihood has no parameters; give the likelihood that the model was made with"
        )
    else:
        psi = theta.new_zeros(*theta.shape[:2], 0)
    if psi.shape[:2] != theta.shape[:2]:
        raise ShapeError(
            f"from_pyro: theta and psi must have the same chains and draws, got {tuple(theta.shape)} and "
            f"{tuple(psi.shape)}"
        )
    info = _what_happened(samples, theta) if isinstance(samples, MCMC) else None
    prior = prior.to(dtype=theta.dtype, device=theta.device)
    return EmpiricalProcess(prior, theta, psi, moved(likelihood, theta.device, theta.dtype), info=info)


@dataclass(frozen=True, eq=False)
class _PyroModel:
    """What :func:`to_pyro` returns; a class because closures cannot be pickled."""

    prior: ParametricProcess
    likelihood: Likelihood

    def __call__(self, X: Tensor, Y: Tensor | None = None, noise_variance: Tensor | None = None) -> Tensor:
        where, likelihood = "to_pyro's model", self.likelihood
        outcomes = likelihood.outcomes(self.prior.output_dim)
        validation.inputs(where, X, self.prior.input_dim, batched=False)
        if Y is not None:
            validation.outcomes(where, "Y", Y, X, outcomes, batched=False)
            likelihood.check_outcomes(where, Y)
        if noise_variance is not None:
            validation.variances(where, noise_variance, X, outcomes)
            likelihood.given_noise(noise_variance)  # refuses every likelihood but the Gaussian
            likelihood = Gaussian(noise=noise_variance.sqrt())
        prior = self.prior.to(dtype=X.dtype, device=X.device)
        likelihood = moved(likelihood, X.device, X.dtype)

        # The hooks, not the checked methods: a diverging trajectory may carry NaN, which is for the sampler to judge.
        of_theta = _Coordinates(prior.num_parameters, prior._sample_parameters, prior._log_prob)
        theta = _plain(pyro.sample("theta", of_theta))
        psi = theta.new_zeros(0)
        if likelihood.num_parameters:

            def draw(shape: torch.Size, generator: torch.Generator | None) -> Tensor:
                return likelihood.sample_prior(shape, generator=generator, dtype=X.dtype, device=X.device)

            psi = _plain(pyro.sample("psi", _Coordinates(likelihood.num_parameters, draw, likelihood.log_prior)))
        if X.shape[0] == 0:  # Pyro has no empty plates
            return X.new_empty(0, outcomes)
        with pyro.plate("rows", X.shape[0], dim=-1):
            f = pyro.deterministic("f", prior._apply(theta, X), event_dim=1)
            return pyro.sample("Y", likelihood.distribution(f, psi.unsqueeze(-2)), obs=Y)


class _Coordinates(TorchDistribution):
    """The law of unconstrained coordinates as a distribution over one real vector.

    `draw` maps a shape and a generator to ``shape x size``; `density` maps ``... x size`` to ``...``.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector

    def __init__(
        self, size: int, draw: Callable[[torch.Size, None], Tensor], density: Callable[[Tensor], Tensor]
    ) -> None:
        self._draw, self._density = draw, density
        super().__init__(torch.Size(), torch.Size([size]), validate_args=False)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self._draw(torch.Size(sample_shape), None)

    def log_prob(self, value: Tensor) -> Tensor:
        if value.shape[-1:] != self.event_shape:
            raise ShapeError(
                f"to_pyro's model: coordinates must have shape (..., {self.event_shape[0]}), got {tuple(value.shape)}"
            )
        return self._density(value)


def _plain(value: Tensor) -> Tensor:
    """Coordinates ``... x size`` without the dimension of size one that stands for the plate of rows.

    Pyro puts vectorised draws left of the plate, ``S x 1 x size``; given back to ``Predictive``,
    draws ``S x size`` come as they are.
    """
    return value.squeeze(-2) if value.ndim > 1 and value.shape[-2] == 1 else value


def _check_parts(where: str, prior: Any, likelihood: Any) -> None:
    if not isinstance(prior, StochasticProcess):
        raise DomainError(f"{where}: prior must be a StochasticProcess, got a {type(prior).__name__}")
    if not isinstance(prior, ParametricProcess):
        raise UnsupportedError(
            f"{where}: prior must be parametric (such as probnn.BayesianNetwork), got a {type(prior).__name__}"
        )
    if not isinstance(likelihood, Likelihood):
        raise DomainError(f"{where}: likelihood must be a probnn likelihood, got a {type(likelihood).__name__}")
    likelihood.outcomes(prior.output_dim)  # raises where the channels do not fit


def _one_chain(value: Any) -> Any:
    """Draws of a dictionary with their chains in front; what is no tensor or of other ranks is left to `_site`."""
    if torch.is_tensor(value) and value.ndim == 2:
        return value.unsqueeze(0)
    if torch.is_tensor(value) and value.ndim == 3 and value.shape[1] == 1:
        return value.transpose(0, 1)
    return value


def _site(sites: Mapping[str, Tensor], name: str, size: int, like: Tensor | None = None) -> Tensor:
    if name not in sites:
        raise DomainError(f"from_pyro: samples must have the site {name!r}, got {sorted(sites)}")
    value = validation.tensor("from_pyro", name, sites[name], like=like).detach()
    if value.ndim != 3 or value.shape[-1] != size or 0 in value.shape[:2]:
        raise ShapeError(
            f"from_pyro: {name} must have shape (draws, {size}) or (chains, draws, {size}) with at least one draw, "
            f"got {tuple(value.shape)}"
        )
    return value


def _what_happened(run: MCMC, theta: Tensor) -> FitInfo | None:
    chains, draws = theta.shape[:2]
    if draws < _MIN_DRAWS:
        return None
    found = run.diagnostics().get("divergences", {})  # kernels without trajectories have none
    divergent = torch.zeros(chains, draws, dtype=torch.bool)
    for i in range(chains):
        divergent[i, found.get(f"chain {i}", [])] = True
    return FitInfo(
        method=f"pyro.{type(run.kernel).__name__}",
        steps=run.num_samples + run.warmup_steps,
        divergences=int(divergent.sum()),
        trace={"divergent": divergent} if found else {},
    )
