"""Mean-field variational inference: the nearest Gaussian with independent coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import ConvergenceError
from ..likelihoods import Gaussian, Likelihood
from ..networks import MLP
from ..networks.mlp import ACTIVATIONS
from ..priors import HierarchicalWeights, WeightPrior
from ..priors.random_scales import RandomScales
from ..process import BayesianNetwork, ParametricProcess
from ..progress import Progress
from .base import InferenceMethod, Session
from .gaussian import GaussianWeightProcess, gaussian_law
from .optimize import Adam, maximize
from .spread import Spread
from .start import prior_scales
from .target import Target

_START_SD = 0.05  # standard deviations at the start, in units of the prior's scales
_TAIL = 5  # the mean of the last fifth of the iterates is the result
_FINAL, _FINAL_CHUNK = 256, 16  # draws of the final estimate of the bound, and how many at once


@dataclass(frozen=True, kw_only=True)
class MeanFieldVI(InferenceMethod):
    r"""Mean-field variational inference (Graves 2011; Blundell et al. 2015, arXiv 1505.05424).

    The independent Gaussian :math:`q(z) = \prod_i N(z_i; m_i, s_i^2)` over z = (theta, psi) that maximises the
    evidence lower bound

    .. math:: \mathrm{ELBO} = E_q[\log p(Y \mid z) + \log p(z) - \log q(z)] = \log p(Y) - KL(q \,\|\, p(z \mid Y)).

    In a multilayer perceptron pre-activations are sampled instead of weights: given its input h a
    layer has :math:`a \sim N(Mh + b, V h^2 + v)` with the means and variances of its weights, drawn for every row
    anew, which takes most of the noise out of the gradient (local reparameterisation; Kingma,
    Salimans and Welling 2015, arXiv 1506.02557); under random scales the same holds given a
    draw of them. With a Gaussian likelihood the last layer is integrated in closed form. Other
    networks and processes use draws of theta itself. `info.trace["local"]` is 1 where pre-activations
    were sampled. The prior's term is in closed form where theta is Gaussian a priori, and from draws elsewhere.

    The fit begins at the best of `num_starts` prior draws that climbed the joint density with psi at
    its prior median, with standard deviations a twentieth of the prior's. The result is the mean of
    the last fifth of the iterates.

    The bound is loose for wide networks: every weight that has to be known costs about a nat or more, and
    where that is more than the data are worth the optimum is the prior with an inferred noise that
    explains all of Y (Coker et al. 2022, arXiv 2202.11670; measured with two layers of 50 units and
    100 rows). Use narrow networks or many rows, or fix the noise, which keeps the function; `info` and
    the noise found tell. Variances are too small where weights are correlated.

    With ``init=`` the fit begins at the mean of a :class:`probnn.inference.GaussianWeightProcess` (and its
    standard deviations, if its coordinates are independent too) or at a draw of another posterior,
    and takes half the steps.

    `info.trace` holds ``"elbo"``, the noisy bound at every step, and ``"final_elbo"`` with
    ``"final_elbo_se"``: mean and standard error of 256 draws of the bound at the result. It bounds the
    log evidence from below, so `info.log_evidence` is None. `info.converged` says whether the bound rose
    by less than a nat (beyond its noise) from the last but one tenth of the steps to the last; it is None after
    fewer than 100 steps, which are too few to tell.

    Args:
        steps: Steps of Adam on means and log standard deviations.
        lr: First step size, for means in units of the prior's scales; it decays to zero.
        num_samples: Draws of the expectation at every step.
        num_starts: Prior draws that the start is chosen from.
        start_steps: Steps of Adam on the joint density, to the start.

    Raises:
        DomainError: A setting is out of its range.
        UnsupportedError: The prior has no density (such as draws).
        ConvergenceError: The bound is not finite.

    Example:
        >>> import torch, probnn
        >>> X = torch.linspace(-1, 1, 8).double().unsqueeze(-1)
        >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=()), probnn.priors.NormalWeights())
        >>> post = probnn.MeanFieldVI(steps=300).fit(prior, probnn.likelihoods.Gaussian(noise=0.1), X, 2 * X - 1)
        >>> [round(v, 1) for v in post.loc.tolist()], bool(post.info.trace["local"])
        ([2.0, -1.0], True)
    """

    steps: int = 1000
    lr: float = 0.03
    num_samples: int = 4
    num_starts: int = 4
    start_steps: int = 150

    references: ClassVar[tuple[str, ...]] = (
        "A. Graves (2011). Practical variational inference for neural networks. NeurIPS 24.",
        "C. Blundell, J. Cornebise, K. Kavukcuoglu, D. Wierstra (2015). Weight uncertainty in neural networks. ICML, "
        "PMLR 37. arXiv:1505.05424.",
        "D. P. Kingma, T. Salimans, M. Welling (2015). Variational dropout and the local reparameterization trick. "
        "NeurIPS 28. arXiv:1506.02557.",
        "B. Coker, W. P. Bruinsma, D. R. Burt, W. Pan, F. Doshi-Velez (2022). Wide mean-field Bayesian neural networks "
        "ignore the data. AISTATS, PMLR 151. arXiv:2202.11670.",
    )

    def __post_init__(self) -> None:
        for name in ("steps", "num_samples", "num_starts"):
            validation.positive_int("MeanFieldVI", name, getattr(self, name))
        validation.positive_int("MeanFieldVI", "start_steps", self.start_steps, minimum=0)
        validation.positive("MeanFieldVI", "lr", self.lr)

    def _check_init(self, where: str, prior: Any, init: Any) -> None:
        # The mean is a start for every coordinate, even where only some of them are random.
        if not (isinstance(init, GaussianWeightProcess) and init.loc.shape[0] == prior.num_parameters):
            super()._check_init(where, prior, init)

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
        target, generator = Target(prior, likelihood, X, Y, noise_variance), session.generator
        scales = prior_scales(target, generator)
        bound = Bound(target)
        steps = self.steps if init is None else max(1, self.steps // 2)
        total = steps + (self.start_steps if init is None else 0)
        with session.bar(total) as bar:
            if init is None:
                loc, scale, climbed, stopped = self._start(target, scales, session, bar, total)
            else:
                (loc, scale), climbed, stopped = _warm(target, scales, init, generator), 0, False
            begun = total - steps
            start = torch.stack([loc / scales, (scale / scales).log()])
            adam, elbos = Adam(start, steps, self.lr), []
            tail, count = torch.zeros_like(start), 0
            for step in range(0 if stopped else steps):
                with torch.enable_grad():
                    leaf = adam.z.clone().requires_grad_(True)
                    value = bound(scales * leaf[0], scales * leaf[1].exp(), self.num_samples, generator).mean()
                    gradient = torch.autograd.grad(value, leaf)[0]
                if not (value.isfinite() and gradient.isfinite().all()):
                    raise ConvergenceError(
                        f"MeanFieldVI.fit: the bound or its gradient is not finite at step {step}; lower lr, or scale "
                        "the data",
                        partial=adam.z,
                    )
                adam.ascend(gradient)
                elbos.append(value.detach())
                if step >= steps - max(1, steps // _TAIL):
                    tail, count = tail + adam.z, count + 1
                bar.update(1)
                if session.stop(begun + step + 1, total, {"elbo": elbos[-1]}):
                    stopped = True
                    break
        loc, log_scale = tail / count if count else adam.z
        loc, scale = scales * loc, scales * log_scale.exp()
        with torch.no_grad():
            chunks = range(0, _FINAL, _FINAL_CHUNK)
            final = torch.cat([bound(loc, scale, _FINAL_CHUNK, generator) for _ in chunks])
        trace = {
            "elbo": torch.stack(elbos) if elbos else loc.new_zeros(0),
            "final_elbo": final.mean(),
            "final_elbo_se": final.std() / math.sqrt(_FINAL),
            "local": loc.new_tensor(float(bound.local)),
        }
        info = session.info(
            steps=len(elbos) + climbed,
            gradients=len(elbos) * self.num_samples + (climbed + 1) * self.num_starts * (init is None),
            converged=False if stopped else _settled(trace["elbo"]),
            trace=trace,
        )
        (theta, psi), (theta_sd, psi_sd) = target.split(loc), target.split(scale)
        spread = psi_sd if psi.shape[0] else None
        return GaussianWeightProcess(
            prior, theta, theta_sd, psi=psi, psi_scale=spread, likelihood=likelihood, info=info
        )

    def _start(
        self, target: Target, scales: Tensor, session: Session, bar: Progress, total: int
    ) -> tuple[Tensor, Tensor, int, bool]:
        """Mean and standard deviations to begin with, the steps taken, and whether the user stopped."""
        stopped = False
        z = target.start((self.num_starts,), session.generator)

        def density(v: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = target.value_and_grad(v * scales)
            return value, gradient * scales

        def tell(step: int, v: Tensor, value: Tensor) -> bool:
            nonlocal stopped
            bar.update(1 if step else 0)
            if step < self.start_steps:  # the last state is the first of the next phase
                stopped = session.stop(step, total, {"log_prob": value})
            return stopped

        free = torch.arange(target.size, device=z.device) < target.prior.num_parameters
        v, trace = maximize(density, z / scales, steps=self.start_steps, lr=0.05, free=free, callback=tell)
        best = torch.where(trace.isfinite(), trace, -torch.inf).max(0).values
        if best.isneginf().all():
            raise ConvergenceError(
                f"MeanFieldVI.fit: the log density is not finite at any of {len(z)} starts; scale the data", partial=z
            )
        return v[best.argmax()] * scales, _START_SD * scales, len(trace) - 1, stopped


class Bound:
    """Unbiased draws of the evidence lower bound of an independent Gaussian over z = (theta, psi).

    Args:
        target: The joint density.
    """

    def __init__(self, target: Target):
        self.target = target

    @cached_property
    def local(self) -> bool:
        """Whether pre-activations can be sampled instead of weights."""
        prior = self.target.prior
        if not (isinstance(prior, BayesianNetwork) and type(prior.network) is MLP):
            return False
        law = prior.weight_prior
        return type(law).weights in (WeightPrior.weights, RandomScales.weights)

    @cached_property
    def law(self) -> tuple[Tensor, Spread] | None:
        """Mean and covariance of theta where it is Gaussian a priori."""
        prior = self.target.prior
        weight_prior = getattr(prior, "weight_prior", None)
        if not (isinstance(prior, BayesianNetwork) and type(weight_prior) is HierarchicalWeights):
            return gaussian_law(prior)
        if weight_prior.scale_prior != "log_normal":
            return None
        # The curvature of independent standard normal weights and normal log scales, anywhere.
        zero = torch.zeros(prior.num_parameters, dtype=prior.dtype, device=prior.device)
        slope = prior._log_prob_and_grad(zero)[1] - prior._log_prob_and_grad(zero + 1)[1]
        return zero, Spread.diagonal(slope.rsqrt())

    def __call__(self, loc: Tensor, scale: Tensor, num_draws: int, generator: torch.Generator | None) -> Tensor:
        """`num_draws` draws of the bound at mean and standard deviations of length `size`; differentiable in both."""
        target, K = self.target, num_draws
        (mean, psi_mean), (sd, psi_sd) = target.split(loc), target.split(scale)
        psi = psi_mean + psi_sd * rnd.normal((K, psi_mean.shape[0]), generator=generator, like=loc)
        entropy = scale.log().sum() + 0.5 * target.size * math.log(2 * math.pi * math.e)
        theta = None
        if not self.local or self.law is None:
            theta = mean + sd * rnd.normal((K, mean.shape[0]), generator=generator, like=loc)
        if self.local:
            fit = self._local_fit(mean, sd, psi, generator)
        else:
            f = target.prior._apply(theta, target.X)  # type: ignore[arg-type]
            fit = target.likelihood.log_prob(target.Y, f, psi.unsqueeze(-2), target.noise_variance).sum(-1)
        log_prior = target.prior._log_prob(theta) if self.law is None else self._expected_log_prior(mean, sd)  # type: ignore[arg-type]
        return fit + log_prior + target.likelihood.log_prior(psi) + entropy

    def _expected_log_prior(self, mean: Tensor, sd: Tensor) -> Tensor:
        """The mean under q of a Gaussian log density, in closed form."""
        centre, spread = self.law  # type: ignore[misc]
        precision = (1 + (spread.directions.square() * spread.gains).sum(-1)) / spread.scale.square()
        square = spread.square(mean - centre) + (precision * sd.square()).sum()
        return -0.5 * (square + spread.log_det() + mean.shape[0] * math.log(2 * math.pi))

    def _local_fit(self, mean: Tensor, sd: Tensor, psi: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draws of the expected log likelihood, one a row of psi ``K x R``, through sampled pre-activations."""
        target, K, prior = self.target, psi.shape[0], self.target.prior
        network: MLP = prior.network  # type: ignore[attr-defined]
        size = network.num_parameters
        if size < mean.shape[0]:  # hierarchical: the weights are Gaussian given the scales
            log_scales = rnd.normal((K, mean.shape[0] - size), generator=generator, like=mean)
            log_scales = mean[size:] + sd[size:] * log_scales

            def weights(z: Tensor) -> Tensor:
                theta = torch.cat([z[:size].expand(K, -1), log_scales], -1)
                return prior.weight_prior.weights(network.layout, theta)  # type: ignore[attr-defined]

            mean, sd = weights(mean), weights(sd)
        else:
            mean, sd = mean.unsqueeze(0), sd.unsqueeze(0)
        activation = ACTIVATIONS[network.activation][0]
        h, layers = target.X.expand(K, -1, -1), list(zip(network._affine(mean), network._affine(sd), strict=True))
        for i, ((weight, bias), (weight_sd, bias_sd)) in enumerate(layers):
            a = h @ weight.mT + bias
            variance = h.square() @ weight_sd.square().mT + bias_sd.square()
            if i < len(layers) - 1:
                h = activation(a + variance.sqrt() * rnd.normal(a.shape, generator=generator, like=a))
        psi, likelihood, known = psi.unsqueeze(-2), target.likelihood, target.noise_variance
        if isinstance(likelihood, Gaussian):
            noise = likelihood.moments(a, psi)[1] if known is None else known
            return likelihood.log_prob(target.Y, a, psi, known).sum(-1) - 0.5 * (variance / noise).sum((-1, -2))
        f = a + variance.sqrt() * rnd.normal(a.shape, generator=generator, like=a)
        return likelihood.log_prob(target.Y, f, psi, known).sum(-1)


def _warm(
    target: Target, scales: Tensor, init: ParametricProcess, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviations of a previous posterior, as far as it has them."""
    P, R = target.prior.num_parameters, target.likelihood.num_parameters
    psi = target.likelihood.prior_median(dtype=scales.dtype, device=scales.device)
    sd, psi_sd = target.split(_START_SD * scales)
    if isinstance(init, GaussianWeightProcess) and init.loc.shape[0] == P:
        theta, old_psi = init.loc, init.psi_mean
        if init.support is None and init.directions is None:
            sd = init.scale.to(scales)
            if init.psi_scale is not None and init.psi_scale.shape[0] == R:
                psi_sd = init.psi_scale.to(scales)
    else:
        theta, old_psi = init._sample_joint(torch.Size(), generator)
    if old_psi.shape[-1] == R:
        psi = old_psi.to(scales)
    return torch.cat([theta.to(scales), psi]), torch.cat([sd, psi_sd])


def _settled(elbo: Tensor) -> bool | None:
    """Whether the last two tenths of the trace differ by less than a nat beyond noise; None: too short to tell."""
    width = len(elbo) // 10
    if width < 10:
        return None
    before, after = elbo[-2 * width : -width], elbo[-width:]
    noise = 2 * ((before.var() + after.var()) / width).sqrt()
    return bool(after.mean() - before.mean() < 1.0 + noise)
