"""Exact inference of Gaussian processes, with hyper-parameters by type-II maximum likelihood."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import validation
from ..errors import ConvergenceError, ConvergenceWarning, DomainError, ShapeError, UnsupportedError
from ..likelihoods import Gaussian, Likelihood
from ..priors import GaussianProcess
from ..process import StochasticProcess
from .base import InferenceMethod, Session
from .marginal import Evidence, Outcome

_FRESH_STARTS = 4  # in place of a start that fails, as many as BoTorch tries


@dataclass(frozen=True, kw_only=True)
class Exact(InferenceMethod):
    r"""Exact conditioning of a Gaussian process, after an optional fit of its hyper-parameters.

    The hyper-parameters h (of kernel and mean, where they require gradients) and an inferred noise
    sigma maximise

    .. math:: \log N(y; \mu_h, k_h(X, X) + \sigma^2 I) + \log p(h) + \log p(\log\sigma)

    (Rasmussen and Williams 2006, section 5.4), with p(h) the gpytorch priors registered on kernel and
    mean (densities of the constrained values, as in BoTorch) and p(log sigma) the normal prior of
    :class:`probnn.likelihoods.Gaussian`: a MAP estimate. BoTorch's default prior of the noise gives the same
    estimate as ``Gaussian(noise_median=exp(-2.5), noise_spread=0.5)``. The noise is kept above a thousandth of
    its prior median: without any, covariances of close points have no Cholesky factor. Outcomes are fitted
    one by one, unless they share an inferred noise (``levels=1``). The search is BoTorch's L-BFGS-B, in
    double precision, from the values the kernel has; `init` (a Gaussian process with such a kernel) lends
    its own instead.

    Args:
        optimize: Fit the hyper-parameters; False keeps everything as given.
        restarts: How many more searches start from random points (the values at the start times
            :math:`e^z`, :math:`z \sim N(0, 1)`, and a draw of the noise's prior); the best is kept.
        max_steps: Steps of one search.

    `fit` returns a :class:`probnn.GaussianProcess` with the fitted hyper-parameters, its likelihood with the
    fitted noise. `info.log_evidence` is the log marginal likelihood at these, without the priors' terms, and
    `info.trace["loss"]` the negative log posterior per observation at each evaluation. No data give the prior
    back, with an inferred noise at the median of its prior.

    Variances that `predict` gives in closed form are never below 1e-10 (1e-6 in single precision), a floor of
    gpytorch's in the units of Y: standardise Y.

    Example:
        >>> import gpytorch, torch, probnn
        >>> X = torch.linspace(0, 1, 8, dtype=torch.double).unsqueeze(-1)
        >>> prior = probnn.GaussianProcess(gpytorch.kernels.RBFKernel(), input_dim=1)
        >>> posterior = Exact().fit(prior, probnn.likelihoods.Gaussian(), X, (4 * X).sin())
        >>> bool((posterior.predict(X).mean - (4 * X).sin()).abs().max() < 0.05)
        True
    """

    needs_parameters: ClassVar[bool] = False
    prefers_double: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = (
        "C. E. Rasmussen and C. K. I. Williams. Gaussian Processes for Machine Learning. MIT Press, 2006.",
        "M. Balandat et al. BoTorch: A framework for efficient Monte-Carlo Bayesian optimization. NeurIPS 2020. "
        "arXiv:1910.06403.",
    )

    optimize: bool = True
    restarts: int = 0
    max_steps: int = 2000

    def __post_init__(self) -> None:
        if not isinstance(self.optimize, bool):
            raise DomainError(f"Exact: optimize must be True or False, got {self.optimize!r}")
        validation.positive_int("Exact", "restarts", self.restarts, minimum=0)
        validation.positive_int("Exact", "max_steps", self.max_steps)

    def _check_parts(self, prior: Any, likelihood: Likelihood) -> None:
        if not isinstance(prior, GaussianProcess):
            raise UnsupportedError(
                f"Exact.fit: prior must be a probnn.GaussianProcess, got a {type(prior).__name__}; use probnn.HMC or "
                "probnn.Laplace for networks"
            )
        if not isinstance(likelihood, Gaussian):
            raise UnsupportedError(
                f"Exact.fit: likelihood must be probnn.likelihoods.Gaussian, got {type(likelihood).__name__}; only "
                "then is the posterior a Gaussian process"
            )

    def _check(self, prior: GaussianProcess, likelihood: Any) -> None:
        if likelihood.noise is None and not self.optimize:
            raise UnsupportedError(
                "Exact.fit: optimize=False keeps everything as given, but the noise is to be inferred; give "
                "Gaussian(noise=...) or noise_variance, or use Exact(optimize=True)"
            )
        if prior.hyperprior:
            raise UnsupportedError(
                "Exact.fit: with a hyperprior the posterior is no Gaussian process; leave it out (optimize=True "
                "estimates the hyper-parameters) and register gpytorch priors on the kernel for a MAP estimate"
            )
        prior._single("fit")
        if prior.train_X is not None and self.optimize:
            raise UnsupportedError(
                "Exact.fit: the prior is already conditioned on data; fit on all data at once, or keep its "
                "hyper-parameters with Exact(optimize=False)"
            )

    def _check_init(self, where: str, prior: Any, init: Any) -> None:
        if init is None or not isinstance(prior, GaussianProcess):
            return
        if not isinstance(init, GaussianProcess):
            raise DomainError(f"{where}: init must be a GaussianProcess, got a {type(init).__name__}")
        shapes = [{name: tuple(x.shape) for name, x in process._parameters.items()} for process in (prior, init)]
        if shapes[0] != shapes[1]:
            raise ShapeError(
                f"{where}: init must have the prior's parameters {shapes[0]}, it has {shapes[1]}; leave init out to "
                "start from the kernel's values"
            )

    def _fit(
        self,
        prior: GaussianProcess,
        likelihood: Any,
        X: Tensor,
        Y: Tensor,
        noise_variance: Tensor | None,
        session: Session,
        init: GaussianProcess | None,
    ) -> StochasticProcess:
        self._check(prior, likelihood)
        facts: dict[str, Any] = {}
        if self.optimize:
            prior, likelihood, facts = self._search(prior, likelihood, X, Y, noise_variance, session, init)
        before = prior.log_evidence
        posterior = replace(prior, likelihood=likelihood)._condition(X, Y, noise_variance)
        log_evidence = (posterior.log_evidence - before).item()
        return replace(posterior, info=session.info(log_evidence=log_evidence, **facts))

    def _fit_nothing(self, prior: Any, likelihood: Likelihood, session: Session) -> StochasticProcess:
        """The prior itself; an inferred noise is at the median of its prior, where log sigma has its mode."""
        self._check(prior, likelihood)
        if likelihood.num_parameters:
            likelihood = _with_noise(likelihood, likelihood.prior_median(dtype=prior.dtype, device=prior.device))
        return replace(prior, likelihood=likelihood, info=session.info(log_evidence=0.0))

    def _search(
        self,
        prior: GaussianProcess,
        likelihood: Any,
        X: Tensor,
        Y: Tensor,
        noise_variance: Tensor | None,
        session: Session,
        init: GaussianProcess | None,
    ) -> tuple[GaussianProcess, Any, dict[str, Any]]:
        m, trainable = prior.output_dim, set(prior.trainable or ())
        own: Any = prior.to(dtype=torch.double)
        start: Any = own if init is None else init.to(dtype=torch.double, device=X.device)
        kernels, means = copy.deepcopy((start.kernels, start.means))
        log_noise = likelihood.prior_median(dtype=torch.double, device=X.device)
        variance = None if noise_variance is None else noise_variance.double()
        shared = likelihood.num_parameters == 1
        groups = [tuple(range(m))] if shared else [(k,) for k in range(m)]
        losses: list[Tensor] = []
        steps, evaluations, converged = 0, 0, True
        with session.bar(self.max_steps * len(groups)) as bar:
            for group in groups:
                level = slice(None) if shared else slice(group[0], group[0] + 1)
                problem = Evidence(
                    {k: kernels[k] for k in group}, {k: means[k] for k in group}, trainable,
                    likelihood if shared else _of_outcome(likelihood, group[0]), X.double(), Y.double(), variance,
                )  # fmt: skip
                if problem.parameters:
                    outcome = self._searches(problem, session, bar.update)
                    steps, evaluations = steps + outcome.steps, evaluations + len(problem.losses)
                    converged = converged and outcome.converged
                    losses.append(torch.tensor(problem.losses, dtype=torch.double))
                if likelihood.num_parameters:
                    log_noise[level] = problem.psi.detach()
        if not converged:
            session.warn(
                "Exact.fit: the search of hyper-parameters did not converge; try restarts=4, or standardise Y and "
                "scale X to the unit cube",
                ConvergenceWarning,
            )
        if likelihood.num_parameters:
            likelihood = _with_noise(likelihood, log_noise.to(prior.dtype))
        fitted: Any = replace(own, kernel=kernels, mean=means).to(dtype=prior.dtype)
        trace = {"loss": torch.cat(losses)} if losses else {}
        return fitted, likelihood, {"steps": steps, "gradients": evaluations, "converged": converged, "trace": trace}

    def _searches(self, problem: Evidence, session: Session, advance: Callable[..., None]) -> Outcome:
        """Search from every start, and from fresh ones while none succeeds; leaves the problem at the best."""
        best: Outcome | None = None
        steps = 0
        for start in range(1 + self.restarts + _FRESH_STARTS):
            if start > self.restarts and best is not None and not best.failed:
                break
            if start > 0:
                problem.scatter(session.generator)
            outcome = problem.minimise(self.max_steps, session, advance)
            steps += outcome.steps
            better = best is None or (outcome.failed, outcome.loss) < (best.failed, best.loss)
            if better and math.isfinite(outcome.loss):
                best = outcome
            if outcome.stopped:
                break
        if best is None:
            raise ConvergenceError(
                "Exact.fit: the marginal likelihood was not finite at any start; check the kernel, and standardise Y"
            )
        problem.restore(best.values)
        return replace(best, steps=steps)


def _of_outcome(likelihood: Any, k: int) -> Any:
    """The likelihood of one outcome alone."""
    own = {name: getattr(likelihood, name) for name in ("noise", "noise_median", "noise_spread")}
    several = {name: x for name, x in own.items() if torch.is_tensor(x) and x.numel() > 1}
    return replace(likelihood, levels=1, **{name: x.reshape(-1)[k] for name, x in several.items()})


def _with_noise(likelihood: Any, log_noise: Tensor) -> Any:
    return replace(likelihood, noise=log_noise.exp())
