"""Ensembles of networks, each trained from its own start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import ConvergenceError, ConvergenceWarning, DomainError, UnsupportedError
from ..likelihoods import Gaussian, Likelihood
from ..priors import HierarchicalWeights
from ..process import BayesianNetwork, EmpiricalProcess, ParametricProcess
from .base import InferenceMethod, Session
from .curvature import information, jacobian
from .gaussian import gaussian_law
from .optimize import ValueAndGrad, maximize
from .polish import is_linear, polish
from .spread import Spread
from .start import prior_scales, warm
from .target import Target

_TURNS = 4  # of the weights in a cold fit, with psi set anew between them
_EVIDENCE_ROWS = 256  # whose evidence sets psi: the cost is cubic in them
_TOLERANCE = 1e-3  # nats that the Newton steps of an anchored member may leave
_UNFINISHED, _ENOUGH = 10.0, 100  # nats gained late from which members are clearly not done; fewer steps cannot tell
_REACH = 3.0  # how far psi, a log scale, moves in one turn


@dataclass(frozen=True, kw_only=True)
class DeepEnsemble(InferenceMethod):
    r"""Deep ensemble: posterior modes found from independent starts, all trained in one batch.

    Every member climbs to a mode of :math:`\log p(\theta) + \sum_i \log p(y_i \mid f_\theta(x_i), \psi)` from a
    prior draw, and members differ because their starts do (Lakshminarayanan, Pritzel and Blundell
    2017, arXiv 1612.01474). With ``anchored=True`` member s climbs a perturbed density instead,

    .. math:: \log N(\theta; \theta_s, \Sigma_{prior}) + \sum_i \log p(y_i + \varepsilon_{si} \mid f_\theta(x_i), \psi),
              \qquad \theta_s \sim p(\theta), \quad \varepsilon_{si} \sim N(0, \sigma^2),

    starting from its anchor theta_s. Where the function is linear in theta, members are, once converged,
    independent draws of the exact posterior: anchors are those of Pearce, Leibfried, Brintrup, Zaki and
    Neely (2020, arXiv 1810.05546), and noise on the outcomes makes the draws exact at any number of data
    (randomise, then optimise; Bardsley, Solonen, Haario and Laine 2014). Adam alone is far from converged where
    the noise is small (at a noise of 0.01 the variance of a linear model's members was 32 to 46 times the exact one
    after 400 steps), so linear functions of moderate size (n c P <= 4e6, min(n c, P) <= 500) end with Newton steps,
    which are exact; other members that are still climbing give a ConvergenceWarning.

    Parameters psi of the likelihood, such as an inferred noise, are not climbed along with theta:
    the joint mode of a network that can interpolate has no noise at all. They begin at their prior
    median, and theta and psi take four turns, in which psi of every member maximises its prior
    times the evidence of the function linearised at the member (with respect to a Gaussian of the
    prior's scales), on at most 256 rows evenly spaced among the data. It is this psi that gives
    the perturbations of an anchored member their size.

    With ``init=`` members begin at draws of that posterior (anchors stay prior draws) and take a
    quarter of the steps, in two turns. `info.trace["log_prob"]` is the density climbed, ``steps + 1 x
    size`` (up to a constant of the member, where it is anchored). `info.converged` says whether no
    member gained more than a nat over the last quarter of its last turn (after Newton steps: whether another
    one would add less than a thousandth of a nat). The warning of anchored members begins at ten nats, and at
    100 steps: fewer cannot tell.

    Args:
        size: Number of members S.
        steps: Steps of Adam, all turns together.
        lr: Step size at the start of each turn, in units of the prior's scales; it decays to zero.
        anchored: Perturb prior means and outcomes. It needs a Gaussian likelihood and Gaussian
            coordinates: NormalWeights, HierarchicalWeights with log-normal scales, or a Gaussian posterior as prior.

    Raises:
        DomainError: A setting is out of its range.
        UnsupportedError: ``anchored=True`` with another prior or likelihood.
        ConvergenceError: The density of a member is nowhere finite.

    Example:
        >>> import torch, probnn
        >>> X = torch.linspace(-1, 1, 8).double().unsqueeze(-1)
        >>> net = probnn.MLP(input_dim=1, hidden=(10,))
        >>> prior = probnn.BayesianNetwork(net, probnn.priors.NormalWeights())
        >>> post = probnn.DeepEnsemble(size=4, steps=40).fit(prior, probnn.likelihoods.Gaussian(noise=0.1), X, 2 * X)
        >>> tuple(post.theta.shape), tuple(post.predict(X).mean.shape)
        ((4, 1, 31), (8, 1))
    """

    size: int = 8
    steps: int = 400
    lr: float = 0.05
    anchored: bool = False

    references: ClassVar[tuple[str, ...]] = (
        "B. Lakshminarayanan, A. Pritzel, C. Blundell (2017). Simple and scalable predictive uncertainty estimation "
        "using deep ensembles. NeurIPS 30. arXiv:1612.01474.",
        "T. Pearce, F. Leibfried, A. Brintrup, M. Zaki, A. Neely (2020). Uncertainty in neural networks: approximately "
        "Bayesian ensembling. AISTATS, PMLR 108. arXiv:1810.05546.",
        "J. M. Bardsley, A. Solonen, H. Haario, M. Laine (2014). Randomize-then-optimize: a method for sampling from "
        "posterior distributions in nonlinear inverse problems. SIAM Journal on Scientific Computing 36.",
    )

    def __post_init__(self) -> None:
        for name in ("size", "steps"):
            validation.positive_int("DeepEnsemble", name, getattr(self, name))
        validation.positive("DeepEnsemble", "lr", self.lr)
        if not isinstance(self.anchored, bool):
            raise DomainError(f"DeepEnsemble: anchored must be True or False, got {self.anchored!r}")

    def _fit(
        self,
        prior: ParametricProcess,
        likelihood: Likelihood,
        X: Tensor,
        Y: Tensor,
        noise_variance: Tensor | None,
        session: Session,
        init: ParametricProcess | None,
    ) -> EmpiricalProcess:
        target = Target(prior, likelihood, X, Y, noise_variance)
        if self.anchored:
            _check_anchored(target)
        z = target.start((self.size,), session.generator)
        perturbation = _Perturbation.draw(target, z, session.generator) if self.anchored else None
        centre, spread = _gaussian_like(target, session.generator)
        scales = torch.cat([spread.scale, z.new_ones(likelihood.num_parameters)])
        steps, turns = self.steps, _TURNS
        if init is not None:
            z = warm(target, init, self.size, session.generator)
            steps, turns = max(1, steps // 4), 2
        turns = min(turns, steps) if likelihood.num_parameters else 1
        free = torch.arange(target.size, device=z.device) < prior.num_parameters
        traces: list[Tensor] = []
        stopped, done = False, 0
        with session.bar(steps) as bar:
            for turn in range(turns):
                length = steps * (turn + 1) // turns - done
                last = turn == turns - 1

                def tell(
                    step: int, v: Tensor, value: Tensor, *, length: int = length, begun: int = done, last: bool = last
                ) -> bool:
                    nonlocal stopped
                    bar.update(1 if step else 0)
                    if step < length or last:  # the end of a turn is the start of the next
                        stopped = session.stop(begun + step, steps, {"log_prob": value})
                    return stopped

                climbed = perturbation.value_and_grad(target, z) if perturbation else target.value_and_grad
                v, trace = maximize(
                    _in_units(climbed, scales), z / scales, steps=length, lr=self.lr, free=free, callback=tell
                )
                z = v * scales
                _check_finite(trace, z)
                done += trace.shape[0] - 1
                traces.append(trace if last or stopped else trace[:-1])
                if stopped:
                    break
                if not last:
                    z = _set_psi(target, z, centre, spread)
        late, polished = 3 * len(trace) // 4, 0
        gained = trace.max(0).values - trace[: late + 1].max(0).values
        settled = gained < 1.0
        if perturbation and not stopped and is_linear(target, z):
            climbed, noise = perturbation.value_and_grad(target, z), perturbation.variance(target, z)
            z, settled, polished = polish("DeepEnsemble.fit", target, climbed, z, noise, _TOLERANCE)
        far = int((~settled & (gained > _UNFINISHED)).sum())
        if perturbation and far and done >= _ENOUGH:
            session.warn(
                f"DeepEnsemble.fit: {far} of {self.size} anchored members still gained more than {_UNFINISHED:g} nats "
                "in the last quarter of their last turn, so they spread more than the posterior does; raise steps",
                ConvergenceWarning,
            )
        theta, psi = target.split(z)
        info = session.info(
            steps=done,
            gradients=(done + len(traces) + (polished and polished + 1)) * self.size,
            converged=not stopped and bool(settled.all()),
            trace={"log_prob": torch.cat(traces)},
        )
        return EmpiricalProcess(prior, theta.unsqueeze(1), psi.unsqueeze(1), likelihood, info=info)


@dataclass(frozen=True, eq=False)
class _Perturbation:
    """What makes members draws: anchors theta_s ``S x P`` and standard normal noise ``S x n x m``."""

    anchors: Tensor
    pull: Tensor
    noise: Tensor

    @classmethod
    def draw(cls, target: Target, z: Tensor, generator: torch.Generator | None) -> _Perturbation:
        """With the starts z ``S x size`` as anchors."""
        anchors = target.split(z)[0].clone()
        # The slope of a Gaussian at theta_s is -Sigma^-1 (theta_s - mu), so -slope . theta moves its mean there.
        pull = -target.prior._log_prob_and_grad(anchors)[1]
        noise = rnd.normal((z.shape[0], *target.Y.shape), generator=generator, like=target.Y)
        return cls(anchors, pull, noise)

    def variance(self, target: Target, z: Tensor) -> Tensor:
        """Noise variances: the known ones ``n x m``, else those that psi in z gives, ``S x n x m``."""
        if target.noise_variance is not None:
            return target.noise_variance
        psi = target.split(z)[1].unsqueeze(-2)
        return target.likelihood.moments(torch.zeros_like(self.noise), psi)[1]

    def value_and_grad(self, target: Target, z: Tensor) -> ValueAndGrad:
        """The perturbed density of theta, with the noise that psi in z gives."""
        variance = self.variance(target, z)
        perturbed = replace(target, Y=target.Y + variance.sqrt() * self.noise)
        P = target.prior.num_parameters

        def climbed(at: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = perturbed.value_and_grad(at)
            gradient = torch.cat([gradient[..., :P] + self.pull, gradient[..., P:]], -1)
            return value + (self.pull * (at[..., :P] - self.anchors)).sum(-1), gradient

        return climbed


def _check_anchored(target: Target) -> None:
    prior, likelihood = target.prior, target.likelihood
    if not isinstance(likelihood, Gaussian):
        raise UnsupportedError(
            f"DeepEnsemble.fit: anchored=True perturbs outcomes by Gaussian noise, got a {type(likelihood).__name__} "
            "likelihood; use likelihoods.Gaussian, or anchored=False"
        )
    law = getattr(prior, "weight_prior", None)
    plain = isinstance(prior, BayesianNetwork) and type(law) is HierarchicalWeights and law.scale_prior == "log_normal"
    if gaussian_law(prior) is None and not plain:
        raise UnsupportedError(
            "DeepEnsemble.fit: anchored=True needs a prior whose coordinates are Gaussian, got "
            f"{type(prior if law is None else law).__name__}; use priors.NormalWeights, "
            "HierarchicalWeights(scale_prior='log_normal') or a Gaussian posterior, or anchored=False"
        )


def _check_finite(trace: Tensor, z: Tensor) -> None:
    lost = ~trace.isfinite().any(0)
    if lost.any():
        raise ConvergenceError(
            f"DeepEnsemble.fit: the log density of {int(lost.sum())} of {len(lost)} members is not finite at any step; "
            "scale the data, or give the prior lighter tails",
            partial=z,
        )


def _in_units(value_and_grad: ValueAndGrad, scales: Tensor) -> ValueAndGrad:
    """A density of z as one of z / scales."""

    def scaled(v: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = value_and_grad(v * scales)
        return value, gradient * scales

    return scaled


def _gaussian_like(target: Target, generator: torch.Generator | None) -> tuple[Tensor, Spread]:
    """Mean and covariance of theta where the prior is Gaussian; else medians and robust scales of its draws."""
    law = gaussian_law(target.prior)
    if law is not None:
        return law
    centre = target.prior._sample_parameters(torch.Size([256]), generator).median(0).values
    scales = target.split(prior_scales(target, generator))[0]
    return target.prior.layout.pool(centre), Spread.diagonal(scales)


def _set_psi(target: Target, z: Tensor, centre: Tensor, spread: Spread) -> Tensor:
    r"""psi of every member at the top of its prior times the evidence of the member's linearised function.

    With g and :math:`\Lambda` the slope and information of the likelihood in the channels f of the member,
    :math:`\delta` their change and :math:`\delta \sim N(\mu, K)` a priori, to second order

    .. math:: \log\int e^{\ell + g^\top\delta - \delta^\top\Lambda\delta/2} N(\delta; \mu, K)\,d\delta
              = \ell + g^\top\mu - \tfrac12\mu^\top\Lambda\mu
              + \tfrac12 h^\top K (I + \Lambda K)^{-1} h - \tfrac12\log\det(I + \Lambda K),

    :math:`h = g - \Lambda\mu`: exact for linear functions and Gaussian outcomes. A member's psi moves
    by less than 3 in a turn: the linearisation was made for the old one.
    """
    count = max(1, min(target.X.shape[0], _EVIDENCE_ROWS // target.prior.output_dim))
    rows = torch.linspace(0, target.X.shape[0] - 1, count, device=z.device).round().long()
    X, Y, likelihood = target.X[rows], target.Y[rows], target.likelihood
    theta, psi = target.split(z)
    values, means, kernels = [], [], []
    for member in theta:
        f, J = jacobian(target.prior, member, X)
        F = spread.lower(J.flatten(0, 1))
        values.append(f)
        means.append(J.flatten(0, 1) @ (centre - member))
        kernels.append(F @ F.mT)
    f, mu, K = torch.stack(values), torch.stack(means), torch.stack(kernels)
    eye = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)

    def objective(at: Tensor) -> Tensor:
        leaf = f.detach().requires_grad_(True)
        fit = likelihood.log_prob(Y, leaf, at.unsqueeze(-2)).sum(-1)
        g = torch.autograd.grad(fit.sum(), leaf, create_graph=True)[0].flatten(1)
        middle = torch.stack([_dense(information(likelihood, Y, f[s], at[s]), count) for s in range(len(at))])
        pushed = torch.einsum("sij,sj->si", middle, mu)
        h = g - pushed
        system = eye + middle @ K
        sign, log_det = torch.linalg.slogdet(system)
        if not (sign > 0).all():
            raise UnsupportedError(
                f"DeepEnsemble.fit: the information of a {type(likelihood).__name__} likelihood is not positive, so "
                "there is no evidence to set psi by; register a Fisher information with "
                "probnn.inference.curvature.information.register, or use probnn.HMC"
            )
        gain = torch.einsum("si,si->s", h, torch.einsum("sij,sj->si", K, torch.linalg.solve(system, h)))
        ends = ((g - 0.5 * pushed) * mu).sum(-1)
        return fit + ends + 0.5 * (gain - log_det) + likelihood.log_prior(at)

    free = torch.zeros_like(psi).requires_grad_(True)
    # Members are separate terms of one sum: the batch costs little more than one of them.
    optimizer = torch.optim.LBFGS([free], max_iter=20, tolerance_change=1e-5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        loss = -objective(psi + _REACH * torch.tanh(free / _REACH)).sum()
        free.grad = torch.autograd.grad(loss, free)[0]
        return loss.detach()

    with torch.enable_grad():
        optimizer.step(closure)
    return torch.cat([theta, psi + _REACH * torch.tanh(free.detach() / _REACH)], -1)


def _dense(middle: Tensor, rows: int) -> Tensor:
    """What :func:`information` returns, as one matrix ``N c x N c``."""
    if middle.ndim == 1:
        return torch.diag(middle.repeat(rows))
    return torch.block_diag(*middle)
