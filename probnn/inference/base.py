"""What an inference method is: from a prior, a likelihood and data to a posterior."""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy
import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError, PrecisionWarning, ShapeError, UnsupportedError, user_level
from ..likelihoods import Likelihood
from ..process import EmpiricalProcess, ParametricProcess, StochasticProcess
from ..process.base import moved
from ..progress import Progress

# callback(step, total, state) -> True to stop early
Callback = Callable[[int, int, Any], Any]
SINGLE = "float32 data; use X.double() and Y.double() for full accuracy"


@dataclass(frozen=True, eq=False)
class FitInfo:
    """What happened during a fit.

    Args:
        method: Name of the inference method.
        seconds: Wall time of the fit.
        steps: Iterations done (all phases).
        gradients: Gradients of the log density, counted per chain or member.
        converged: What the method's own check says; None where it has none.
        step_size, trajectory, inverse_mass: Adapted by a sampler; the last one is a diagonal.
        acceptance: Mean acceptance probability after warm-up.
        divergences: Diverged trajectories after warm-up.
        log_evidence: Log marginal likelihood, where the method gives one.
        temperature: That of the likelihood; 1 unless a sampler was asked for another.
        trace: Named tensors over steps, such as ``"energy"`` or ``"loss"``.
        warnings: The warnings given, in words.

    Example:
        >>> import torch, probnn
        >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=()), probnn.priors.NormalWeights())
        >>> X = torch.linspace(-1, 1, 8).double().unsqueeze(-1)
        >>> info = probnn.Laplace(steps=50).fit(prior, probnn.likelihoods.Gaussian(0.1), X, 2 * X).info
        >>> info.method, info.divergences
        ('Laplace', 0)
    """

    method: str = ""
    seconds: float = 0.0
    steps: int = 0
    gradients: int = 0
    converged: bool | None = None
    step_size: float | None = None
    trajectory: float | None = None
    inverse_mass: Tensor | None = None
    acceptance: float | None = None
    divergences: int = 0
    log_evidence: float | None = None
    temperature: float = 1.0
    trace: dict[str, Tensor] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Session:
    """One fit under way: its randomness, clock, progress bar, callback and warnings."""

    def __init__(self, method: str, seed: int, device: torch.device, progress: bool, callback: Callback | None):
        self.method, self.callback = method, callback
        self.generator = rnd.generator_from(seed, device=device)
        self.warnings: list[str] = []
        self._progress, self._started = progress, time.perf_counter()

    def bar(self, total: int, label: str = "") -> Progress:
        """A progress bar named after the method."""
        return Progress(total, f"{self.method} {label}".strip(), self._progress)

    def stop(self, step: int, total: int, state: Any) -> bool:
        """Tell the callback where the fit is; True where it asks to stop."""
        told = None if self.callback is None else self.callback(step, total, state)
        # Not any truth: a callback may return a loss, or whatever its last call gave.
        return isinstance(told, (bool, numpy.bool_)) and bool(told)

    def warn(self, message: str, category: type[Warning]) -> None:
        """Warn the user, and keep the words for `FitInfo.warnings`."""
        self.warnings.append(message)
        warnings.warn(message, category, stacklevel=user_level())

    def info(self, **facts: Any) -> FitInfo:
        """The facts with the method's name, the time taken and the warnings."""
        seconds = time.perf_counter() - self._started
        return FitInfo(method=self.method, seconds=seconds, warnings=tuple(self.warnings), **facts)


@dataclass(frozen=True, kw_only=True)
class InferenceMethod(ABC):
    """Maps a prior, a likelihood and data to a posterior process.

    A method is a frozen dataclass of settings; a subclass writes :meth:`_fit`, and lists what it
    needs in the class variables below.
    """

    needs_parameters: ClassVar[bool] = True  # works on ParametricProcess priors only
    needs_density: ClassVar[bool] = True  # takes no EmpiricalProcess as prior, whose draws have no log_prob
    prefers_double: ClassVar[bool] = False  # warns on float32 data
    references: ClassVar[tuple[str, ...]] = ()

    def fit(
        self,
        prior: StochasticProcess,
        likelihood: Likelihood,
        X: Tensor,
        Y: Tensor,
        *,
        noise_variance: Tensor | None = None,
        seed: int = 0,
        init: StochasticProcess | None = None,
        progress: bool = False,
        callback: Callback | None = None,
    ) -> StochasticProcess:
        """Infer the posterior process.

        Args:
            prior: The process before the data; it is moved to the dtype and device of X.
            likelihood: The law of Y given the function.
            X: Inputs ``n x d``; n = 0 gives the prior back.
            Y: Outcomes ``n x m``, dtype and device of X.
            noise_variance: Known noise variances ``n x m`` (Gaussian likelihoods).
            seed: Same seed, same machine: the same posterior to the last bit. Torch's global
                stream is neither read nor moved.
            init: A previous posterior with the same number of parameters, as a warm start.
            progress: Show a progress bar; it changes nothing else.
            callback: Called as ``callback(step, total, state)``; return True to stop early.

        Returns:
            The posterior, with `info` (:class:`FitInfo`), `prior` and `likelihood`.

        Raises:
            ShapeError, DomainError, NonFiniteError: The data do not fit the prior and likelihood.
            UnsupportedError: The method cannot work on this prior or likelihood.
        """
        where = f"{type(self).__name__}.fit"
        rnd.check_seed(where, seed)
        if callback is not None and not callable(callback):
            raise DomainError(f"{where}: callback must be callable as callback(step, total, state), got {callback!r}")
        if not isinstance(prior, StochasticProcess):
            raise DomainError(f"{where}: prior must be a StochasticProcess, got a {type(prior).__name__}")
        if not isinstance(likelihood, Likelihood):
            raise DomainError(f"{where}: likelihood must be a probnn likelihood, got a {type(likelihood).__name__}")
        if self.needs_parameters and not isinstance(prior, ParametricProcess):
            raise UnsupportedError(
                f"{where}: prior must be parametric (such as probnn.BayesianNetwork), got a {type(prior).__name__}; "
                "probnn.Exact infers Gaussian processes"
            )
        if self.needs_density and isinstance(prior, EmpiricalProcess):
            raise UnsupportedError(
                f"{where}: prior is a posterior of draws, and draws have no density; fit the first prior on all data "
                "at once (init= starts from the draws), use the posterior of probnn.Laplace or probnn.MeanFieldVI as "
                "the prior, or reweight the draws by a few new rows with prior.condition(X, Y)"
            )
        self._check_parts(prior, likelihood)
        single_or_double(where, X)
        validation.inputs(where, X, prior.input_dim, batched=False)
        validation.outcomes(where, "Y", Y, X, likelihood.outcomes(prior.output_dim), batched=False)
        likelihood.check_outcomes(where, Y)
        if noise_variance is not None:
            validation.outcomes(where, "noise_variance", noise_variance, X, Y.shape[-1], batched=False)
            validation.variances(where, noise_variance, X, Y.shape[-1])
            likelihood = likelihood.given_noise(noise_variance)
        self._check_init(where, prior, init)
        session = Session(type(self).__name__, seed, X.device, progress, callback)
        if self.prefers_double and X.dtype == torch.float32:
            session.warn(f"{where}: {SINGLE}", PrecisionWarning)
        prior = prior.to(dtype=X.dtype, device=X.device)
        likelihood = moved(likelihood, X.device, X.dtype)
        if X.shape[0] == 0:
            return self._fit_nothing(prior, likelihood, session)
        return self._fit(prior, likelihood, X, Y, noise_variance, session, init)

    def cite(self) -> tuple[str, ...]:
        """References of the method."""
        return self.references

    @abstractmethod
    def _fit(
        self,
        prior: Any,
        likelihood: Likelihood,
        X: Tensor,
        Y: Tensor,
        noise_variance: Tensor | None,
        session: Session,
        init: Any,
    ) -> StochasticProcess: ...

    def _fit_nothing(self, prior: Any, likelihood: Likelihood, session: Session) -> StochasticProcess:
        """The answer to no data: draws of the prior with draws of psi."""
        theta = prior.sample_parameters((1, 256), generator=session.generator)
        psi = likelihood.sample_prior((1, 256), generator=session.generator, dtype=theta.dtype, device=theta.device)
        info = session.info(temperature=getattr(self, "temperature", 1.0))
        return EmpiricalProcess(prior, theta, psi, likelihood, info=info)

    def _check_parts(self, prior: Any, likelihood: Likelihood) -> None:
        """Raise `UnsupportedError` for a prior or a likelihood of a kind the method does not know."""

    def _check_init(self, where: str, prior: Any, init: Any) -> None:
        if init is None:
            return
        if not isinstance(init, ParametricProcess) or not isinstance(prior, ParametricProcess):
            raise DomainError(f"{where}: init must be a parametric posterior, got a {type(init).__name__}")
        if init.num_parameters != prior.num_parameters:
            raise ShapeError(
                f"{where}: init must have the prior's {prior.num_parameters} parameters, it has {init.num_parameters}; "
                "leave init out to start cold"
            )


def single_or_double(where: str, X: Any) -> None:
    """Raise `DomainError` for data in half precision, in which neither factorisations nor samplers work."""
    if torch.is_tensor(X) and X.is_floating_point() and X.dtype not in (torch.float32, torch.float64):
        raise DomainError(f"{where}: X must be float32 or float64, got {X.dtype}; convert the data with .double()")
