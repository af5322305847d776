"""A network's prior with the functions of the default Gaussian process."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch

from .. import validation
from ..errors import DomainError
from ..networks import MLP
from ..priors import BNNPrior, GaussianProcess, GPPrior, LogNormal, Match, WeightPrior, match_prior
from ..process import BayesianNetwork

_DIGITS = 3  # of a matched hyper-parameter: its last ones depend on the machine's rounding, and mean nothing


@dataclass(frozen=True)
class MatchedPrior:
    r"""A Bayesian network whose functions look like those of the Gaussian process that the surrogate ``gp`` takes.

    The target is :class:`probnn.priors.GPPrior` as a law of functions: on the box :math:`[-1, 1]^d` every function has
    length scales of its own, :math:`\log\ell_j \sim N(\sqrt 2 + \tfrac12 \log d + \log 2, 3)`, the last summand because
    the box is twice as wide as the unit cube (Hvarfner, Hellsten and Nardi 2024, arXiv 2402.02229; their lower bound of
    0.025, which one draw in 600 passes at d = 1 and fewer at others, is left out). The scales of `base` are tuned to it
    by :func:`probnn.match_prior` (Tran et al. 2022, arXiv 2011.12829) at Sobol points of the box: by ``"energy"`` where
    scales are random, by ``"auto"`` where they are fixed.

    Sine units are the default, for they can be stationary, and scales are random, because the target's length scales
    are. Mean log density at 300 new points, averaged over two designs (HMC as in ``bnn-hmc``; Branin with 20 points,
    Hartmann6 with 50, Ackley5 with 40, a draw of an RBF process with 20): matched sine units 0.04, -1.12, -1.36, 0.80;
    the same units unmatched 0.01, -1.12, -1.40, 0.78; matched tanh units 0.05, -1.13, -1.36, 0.22; ``bnn-hmc`` 0.03,
    -1.17, -1.37, 0.35; ``gp`` 0.37, -1.50, -1.67, 1.19. Matched fixed scales were at -1.3, -1.3,
    -1.5, -1.2: most functions of the target are nearly constant, and a network that cannot choose its scales is too.

    The match knows nothing of any data. It is made when the first prior of `input_dim` inputs is asked for, takes some
    seconds, and is kept for the process: refits cost nothing more. Hyper-parameters are rounded to three digits. With
    several channels every one has this law, but they share hidden layers where the Gaussian processes are
    independent.

    Args:
        base: The network, and the prior to start from.
        kernel: ``"rbf"`` or ``"matern52"``, of the target.
        num_points: Points where functions are compared.
        num_steps: Steps of the match.
        num_draws: Functions of each process in a step.
        shrinkage: Of :func:`probnn.match_prior`: how strongly the scales are held near those of `base`.

    Raises:
        DomainError: A setting is out of its range.

    Example:
        >>> import probnn
        >>> prior = MatchedPrior(probnn.priors.BNNPrior(hidden=(20,)), num_steps=10)
        >>> prior(2, 1).weight_prior == prior(2, 3).weight_prior
        True
    """

    base: BNNPrior = BNNPrior(activation="sin")
    kernel: str = "rbf"
    num_points: int = 64
    num_steps: int = 150
    num_draws: int = 128
    shrinkage: float = 0.001

    def __post_init__(self) -> None:
        where = type(self).__name__
        if not isinstance(self.base, BNNPrior):
            raise DomainError(f"{where}: base must be a probnn.priors.BNNPrior, got {self.base!r}")
        GPPrior(self.kernel)  # refuses unknown ones
        for name, minimum in (("num_points", 1), ("num_steps", 1), ("num_draws", 2)):
            value = validation.positive_int(where, name, getattr(self, name), minimum)
            object.__setattr__(self, name, value)
        validation.positive(where, "shrinkage", self.shrinkage, allow_zero=True)
        if self.base.scale_prior == "half_cauchy":
            raise DomainError(
                f"{where}: functions under half-Cauchy scales have no mean, which the match needs; take "
                "scale_prior='log_normal'"
            )

    def __call__(self, input_dim: int, num_channels: int = 1) -> BayesianNetwork:
        """The process of `input_dim` inputs and `num_channels` channels, in torch's default dtype."""
        validation.positive_int(type(self).__name__, "input_dim", input_dim)
        hidden, activation = self.base.hidden, self.base.activation
        network = MLP(input_dim=input_dim, hidden=hidden, output_dim=num_channels, activation=activation)
        return BayesianNetwork(network, _weight_prior(self, input_dim))

    def target(self, input_dim: int) -> GaussianProcess:
        """The Gaussian process on [-1, 1]^d, with a law of its length scales."""
        from gpytorch.constraints import Positive

        kernel = GPPrior(self.kernel)(input_dim, 1).kernels[0].double()
        kernel.register_constraint("raw_lengthscale", Positive())
        # In full precision, which the kernel's own prior has only where that is torch's default.
        twice = LogNormal(math.sqrt(2) + 0.5 * math.log(input_dim) + math.log(2), math.sqrt(3))
        return GaussianProcess(kernel, input_dim=input_dim, hyperprior={"lengthscale": twice})

    def match(self, input_dim: int) -> Match:
        """The match anew, with its distances and its figure."""
        start = self.base(input_dim, 1).to(dtype=torch.double)
        points = torch.quasirandom.SobolEngine(input_dim, scramble=True, seed=0).draw(
            self.num_points, dtype=torch.double
        )
        return match_prior(
            start,
            self.target(input_dim),
            2 * points - 1,
            "auto" if self.base.scale_prior is None else "energy",
            num_steps=self.num_steps,
            num_draws=self.num_draws,
            shrinkage=self.shrinkage,
            seed=0,
        )


@functools.lru_cache(maxsize=256)
def _weight_prior(settings: MatchedPrior, input_dim: int) -> WeightPrior:
    """The matched law of the weights, rounded."""
    match = settings.match(input_dim)
    found = match.prior.weight_prior
    names = found.hyperparameters(match.prior.network.layout)
    return replace(found, **{name: tuple(_rounded(v) for v in getattr(found, name)) for name in names})


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
