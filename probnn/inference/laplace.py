"""Laplace's method: a Gaussian around the mode, with the evidence it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .. import validation
from ..errors import DomainError
from ..likelihoods import Likelihood
from ..process import ParametricProcess, StochasticProcess
from .base import InferenceMethod, Session
from .gaussian import GaussianWeightProcess, gaussian_law
from .laplace_fit import LaplaceFit
from .target import Target


@dataclass(frozen=True, kw_only=True)
class Laplace(InferenceMethod):
    r"""Laplace's method: a Gaussian at the mode theta* whose precision is the Gauss-Newton curvature,

    .. math:: \Sigma^{-1} = \sum_i J_i^\top \Lambda_i J_i - \nabla^2 \log p(\theta^*), \qquad
              J_i = \partial f(x_i)/\partial\theta,

    with :math:`\Lambda_i` the Fisher information of the likelihood in the channels (MacKay 1992).
    Predictions are those of the linearised function (Immer, Korzepa and Bauer 2021, arXiv
    2008.08400; their variances are never below 1e-10, 1e-6 in single precision, a floor of gpytorch's in the
    units of Y), and

    .. math:: \log p(Y) \approx \log p(Y, \theta^*) + \tfrac P2 \log 2\pi + \tfrac12 \log\det\Sigma

    is `info.log_evidence`: all of it is exact for linear functions and Gaussian noise.

    **Hyper-parameters.** Parameters psi of the likelihood (such as an inferred noise) and the scales of
    a prior with random scales (:class:`probnn.priors.HierarchicalWeights`,
    :class:`probnn.priors.InverseGammaWeights`) have no place in a mode: together with the weights
    they run off to no noise and huge scales. They maximise evidence times their prior and are held
    there; `info.log_evidence` is then the log of that product. ``tune=True`` lets the evidence also
    set the scale of every block of a :class:`probnn.priors.NormalWeights` prior and a noise given as a
    number, which are then starting values. As in Immer et al. (2021, arXiv 2104.04975) the weights and
    the hyper-parameters take turns; here the gradient of the evidence includes how the curvature
    changes as the mode follows, and only turns that raise the evidence are kept.

    **Priors** that are Gaussian enter exactly; others need independent coordinates and a density
    that is log-concave at the mode.

    With ``init=`` the mode is looked for from that posterior's mean (:class:`GaussianWeightProcess`) or
    from draws of it, with a quarter of the steps.

    Args:
        structure: ``"full"``: the whole covariance, kept through at most min(P, n c) directions.
            ``"last_layer"``: the last layer given the others, which stay at the mode for the
            hyper-parameters given; the evidence is conditional on them too, so it compares noises
            and scales of the last layer but no networks. ``"diagonal"``: independent coordinates.
            ``"auto"``: the full one while min(P, n c) <= 1,000 and n c P <= 2e7; else the last layer
            under the same limits; else the diagonal.
        linearized: Predict with the linearised function; False: with the network itself at draws of
            theta (often worse: such draws leave the region where the quadratic holds).
        tune: Set the prior's scales and the noise by the evidence; the posterior's `prior` and
            `likelihood` are then the tuned ones.
        num_starts: Prior draws from which the mode is looked for, in one batch; the best is kept.
        steps: Steps of Adam from each start, psi at its prior median.
        lr: Its step size at the start, in units of the prior's scales; it decays to zero.
        polish_steps: Largest number of damped Gauss-Newton steps to the mode, each time it is looked
            for (L-BFGS steps, for weights outside the last layer and for the diagonal structure).
        rounds: Largest number of turns of the hyper-parameters.
        tolerance: In nats. The mode is reached when a Gauss-Newton step promises to add less to the
            log density, and the hyper-parameters when a turn promises or gains less.

    Raises:
        DomainError: A setting is out of its range.
        UnsupportedError: The prior or likelihood has no sound curvature, or ``tune=True`` finds a
            prior other than `NormalWeights`.
        ConvergenceError: No start has a finite density.

    Example:
        >>> import torch, probnn
        >>> X = torch.linspace(-1, 1, 10, dtype=torch.double).unsqueeze(-1)
        >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=()), probnn.priors.NormalWeights())
        >>> post = probnn.Laplace(steps=50).fit(prior, probnn.likelihoods.Gaussian(noise=0.1), X, 2 * X - 1)
        >>> [round(v, 1) for v in post.loc.tolist()], round(post.info.log_evidence, 2)
        ([2.0, -1.0], 4.88)
    """

    structure: str = "auto"
    linearized: bool = True
    tune: bool = False
    num_starts: int = 4
    steps: int = 500
    lr: float = 0.05
    polish_steps: int = 300
    rounds: int = 50
    tolerance: float = 1e-2

    prefers_double: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = (
        "D. J. C. MacKay (1992). A practical Bayesian framework for backpropagation networks. Neural Computation 4.",
        "A. Immer, M. Korzepa, M. Bauer (2021). Improving predictions of Bayesian neural nets via local linearization. "
        "AISTATS, PMLR 130. arXiv:2008.08400.",
        "A. Immer, M. Bauer, V. Fortuin, G. Raetsch, M. E. Khan (2021). Scalable marginal likelihood estimation for "
        "model selection in deep learning. ICML, PMLR 139. arXiv:2104.04975.",
    )

    def __post_init__(self) -> None:
        validation.choice("Laplace", "structure", self.structure, ("auto", "full", "last_layer", "diagonal"))
        for name in ("num_starts", "steps", "polish_steps", "rounds"):
            validation.positive_int("Laplace", name, getattr(self, name))
        for name in ("lr", "tolerance"):
            validation.positive("Laplace", name, getattr(self, name))
        for name in ("linearized", "tune"):
            if not isinstance(getattr(self, name), bool):
                raise DomainError(f"Laplace: {name} must be True or False, got {getattr(self, name)!r}")

    def _check_init(self, where: str, prior: Any, init: Any) -> None:
        # The mode is a start for every weight, even where only some of them are random.
        if not (isinstance(init, GaussianWeightProcess) and init.loc.shape[0] == prior.num_parameters):
            super()._check_init(where, prior, init)

    def _fit_nothing(self, prior: Any, likelihood: Likelihood, session: Session) -> StochasticProcess:
        law = gaussian_law(prior)
        if law is None:
            return super()._fit_nothing(prior, likelihood, session)
        mean, spread = law
        psi = likelihood.prior_median(dtype=prior.dtype, device=prior.device)
        info = session.info(converged=True, log_evidence=0.0)
        # Not linearised: the prior itself, whose functions a tangent at its mean would not resemble.
        return GaussianWeightProcess(
            prior, mean, spread.scale, spread.directions, spread.gains, psi=psi, likelihood=likelihood, info=info
        )

    def _fit(
        self,
        prior: ParametricProcess,
        likelihood: Likelihood,
        X: Tensor,
        Y: Tensor,
        noise_variance: Tensor | None,
        session: Session,
        init: ParametricProcess | None,
    ) -> GaussianWeightProcess:
        return LaplaceFit(self, Target(prior, likelihood, X, Y, noise_variance), session).run(init)
