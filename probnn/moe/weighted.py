"""Posterior draws as maxima of randomly weighted likelihoods and shifted priors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import validation
from ..errors import ConvergenceWarning, UnsupportedError
from ..inference.base import InferenceMethod, Session
from ..inference.start import warm
from ..inference.target import Target
from ..likelihoods import Likelihood
from ..process import EmpiricalProcess, ParametricProcess
from .data import Data
from .mixture import GaussianMixture
from .newton import run_newton
from .perturbed import PerturbedObjective
from .process import MixtureOfExperts
from .state import State
from .uncertainty import dirichlet_weights

# Among how many of the best maxima every member finds its second start.
_MODES = 16
# A member with a larger Newton decrement, in nats, is not at its maximum.
_FAR = 1e-2


@dataclass(frozen=True, kw_only=True)
class WeightedBootstrap(InferenceMethod):
    r"""Approximate posterior draws of a mixture of experts, all of them fitted in one batch of Newton's method.

    Draw s maximises a weighted likelihood and a shifted prior,

    .. math:: \theta_s = \arg\max_\theta \sum_i w_{si} \log p(y_i \mid x_i, \theta) + \log p(\theta)
              - \nabla \log p(\theta_{0s})^\top \theta,

    with :math:`w_s / n` from a flat Dirichlet law (the weighted-likelihood bootstrap; Newton & Raftery 1994) and
    :math:`\theta_{0s}` from the prior: without data the maximum is :math:`\theta_{0s}`, an exact draw of the prior;
    with many data it is a draw of the bootstrap, which agrees with the posterior to first order. (A shift of the
    prior's mean, for normal coordinates, as in Pearce et al. 2020, arXiv 1810.05546.) In between the draws are
    approximate, because the noise of few rows is represented by their weights only. :class:`probnn.HMC` samples the
    posterior itself; with the noisy outcomes of two lines, K = 3, functions at the data had these standard deviations
    (means of 256 draws, and of 16 chains of 200 + 32; both took turns on one core):

    === ========= ===== ========== =======
    n   bootstrap HMC   bootstrap  HMC
    === ========= ===== ========== =======
    2   0.52      0.46  0.8 s      2.3 s
    5   0.37      0.39  0.9 s      4.0 s
    20  0.14      0.19  1.7 s      9.9 s
    100 0.06      0.08  1.9 s      42.8 s
    === ========= ===== ========== =======

    With known noise the likelihood is that of nonlinear regression on the mixture's mean (:class:`GaussianMixture`).

    A member starts from its own prior draw, and again from that maximum of all members which is best for it: draws
    stay apart where the data do not decide, and do not stay at poor local maxima.

    Args:
        size: Number of draws S.
        max_iter: Most Newton steps of each of the two searches.
        tolerance: Bound of the Newton decrement at which a member ends, in nats.

    Raises:
        DomainError: A setting is out of its range.
        UnsupportedError: The prior is no :class:`MixtureOfExperts`, its gate not smooth, or the likelihood no
            :class:`GaussianMixture` of as many experts.

    Example:
        >>> import torch
        >>> from probnn import moe
        >>> X = torch.linspace(-1, 1, 30).double().unsqueeze(-1)
        >>> Y = torch.where(X < 0, 1 + X, -X)
        >>> prior = moe.MixtureOfExperts(moe.GaussianMoE(num_experts=2, input_dim=1))
        >>> posterior = moe.WeightedBootstrap(size=8).fit(prior, moe.GaussianMixture(2), X, Y)
        >>> tuple(posterior.theta.shape), tuple(posterior.predict(X).mean.shape)
        ((1, 8, 10), (30, 1))
    """

    size: int = 64
    max_iter: int = 60
    tolerance: float = 1e-6

    references: ClassVar[tuple[str, ...]] = (
        "M. A. Newton, A. E. Raftery (1994). Approximate Bayesian inference with the weighted likelihood bootstrap. "
        "Journal of the Royal Statistical Society B 56, 3-48.",
        "T. Pearce, F. Leibfried, A. Brintrup, M. Zaki, A. Neely (2020). Uncertainty in neural networks: approximately "
        "Bayesian ensembling. AISTATS, PMLR 108. arXiv:1810.05546.",
    )

    def __post_init__(self) -> None:
        for name in ("size", "max_iter"):
            validation.positive_int("moe.WeightedBootstrap", name, getattr(self, name))
        validation.positive("moe.WeightedBootstrap", "tolerance", self.tolerance)

    def _check_parts(self, prior: Any, likelihood: Likelihood) -> None:
        where = "WeightedBootstrap.fit"
        if not isinstance(prior, MixtureOfExperts) or not prior.model.gate.smooth:
            raise UnsupportedError(
                f"{where}: prior must be a moe.MixtureOfExperts with a smooth gate, got a {type(prior).__name__}"
                + (f" with a {type(prior.model.gate).__name__}" if isinstance(prior, MixtureOfExperts) else "")
                + "; probnn.HMC takes any parametric prior"
            )
        K = prior.model.num_experts
        if not isinstance(likelihood, GaussianMixture) or likelihood.num_experts != K:
            raise UnsupportedError(f"{where}: likelihood must be moe.GaussianMixture({K}), got {likelihood!r}")

    def _fit(
        self,
        prior: MixtureOfExperts,
        likelihood: GaussianMixture,  # type: ignore[override]
        X: Tensor,
        Y: Tensor,
        noise_variance: Tensor | None,
        session: Session,
        init: ParametricProcess | None,
    ) -> EmpiricalProcess:
        S, generator = self.size, session.generator
        wide = prior.to(dtype=torch.float64)
        anchors = wide.sample_parameters((S,), generator=generator)
        weights = dirichlet_weights(S, len(X), generator).to(X.device)
        outcomes, variance = Y.double(), likelihood.known_variance(Y.double(), noise_variance)
        if variance is not None:
            outcomes = torch.cat([outcomes, variance.double().expand_as(outcomes)], -1)
        data = Data(X.double().mT.unsqueeze(0).contiguous(), outcomes.mT.unsqueeze(0).contiguous(), weights)
        objective = PerturbedObjective(prior.model, data, prior=wide, anchors=anchors, known=variance is not None)
        theta = anchors
        if init is not None:
            theta = warm(Target(wide, likelihood, X.double(), Y.double()), init, S, generator)
        stopped, begun = False, 0
        with session.bar(2 * self.max_iter) as bar:

            def tell(done: int, total: int, state: State) -> bool:
                nonlocal stopped
                bar.update()
                stopped = session.stop(begun + done, 2 * self.max_iter, {"log_prob": state.value})
                return stopped

            found = self._search(objective, theta, tell)
            steps = int(found.num_iter.max())
            if not stopped:
                begun = self.max_iter
                steps += self._again(objective, found, tell)
        far = int((~(found.decrement < _FAR)).sum())
        if far and not stopped:
            session.warn(
                f"WeightedBootstrap.fit: {far} of {S} members are not at their maximum; raise max_iter",
                ConvergenceWarning,
            )
        info = session.info(
            steps=steps,
            gradients=int(found.num_iter.sum()),
            converged=not stopped and bool(found.converged.all()),
            trace={"log_prob": found.value, "decrement": found.decrement},
        )
        theta = objective.coordinates(found.theta).to(X.dtype).unsqueeze(0)
        return EmpiricalProcess(prior, theta, theta[..., :0], likelihood, info=info)

    def _search(self, objective: PerturbedObjective, theta: Tensor, callback: Any) -> State:
        return run_newton(
            objective, objective.prior._full(theta), max_iter=self.max_iter, tol=self.tolerance, callback=callback
        )

    def _again(self, objective: PerturbedObjective, found: State, callback: Any) -> int:
        """Start every member from the maximum of another that suits it best, and keep what is better; the steps."""
        theta = objective.coordinates(found.theta)
        # Ranked by the density without weights and shifts, which differ between members.
        modes = theta[_distinct(objective.plain().value(found.theta))[:_MODES]]
        height = torch.stack([objective.value(objective.prior._full(mode.expand_as(theta))) for mode in modes], -1)
        other = self._search(objective, modes[height.argmax(-1)], callback)
        better = (other.value > found.value).nonzero().squeeze(-1)
        found.put(better, other.take(better))
        return int(other.num_iter.max())


def _distinct(height: Tensor) -> Tensor:
    """Indices of the heights, in decreasing order, without those within a nat of one before them."""
    order = height.argsort(descending=True)
    kept = [int(order[0])]
    for i in order[1:].tolist():
        if height[kept[-1]] - height[i] > 1.0:
            kept.append(i)
    return torch.tensor(kept, device=height.device)
