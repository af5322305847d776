"""Hyper-parameters set by the evidence of a local model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..likelihoods import Likelihood
from ..priors.random_scales import RandomScales
from ..process import BayesianNetwork, ParametricProcess
from .local import LocalModel

# A Jacobian is kept whole while it has at most this many numbers, and its shorter side is at most
# that long: about a second on one core.
MAX_JACOBIAN, MAX_SIDE = 20_000_000, 1_000


@dataclass(frozen=True, eq=False)
class HyperParameters:
    """What the evidence sets: psi, scales of the prior's blocks, and a noise that the likelihood has fixed.

    One vector holds psi, the log change of each block's scale and the log noise.

    Args:
        likelihood: The likelihood at the start.
        psi: Its parameters at the start, of length R.
        blocks: Number of blocks whose scale is set.
        scale_prior: Log density of the changes, where they have one (a hierarchical prior).
        noise: Set the noise that the likelihood has fixed.
    """

    likelihood: Likelihood
    psi: Tensor
    blocks: int = 0
    scale_prior: Callable[[Tensor], Tensor] | None = None
    noise: bool = False

    @property
    def _fixed_noise(self) -> Tensor:
        if not self.noise:
            return self.psi.new_zeros(0)
        return torch.as_tensor(self.likelihood.noise, dtype=self.psi.dtype, device=self.psi.device)  # type: ignore[attr-defined]

    def start(self) -> Tensor:
        """The vector of the values at the start."""
        return torch.cat([self.psi, self.psi.new_zeros(self.blocks), self._fixed_noise.log().reshape(-1)])

    def unpack(self, vector: Tensor) -> tuple[Likelihood, Tensor, Tensor | None]:
        """The likelihood, psi and the log changes of the scales (None: no blocks); differentiable."""
        fixed = self._fixed_noise
        psi, log_scales, log_noise = vector.split([self.psi.shape[0], self.blocks, fixed.numel()])
        likelihood = self.likelihood
        if self.noise:
            likelihood = replace(likelihood, noise=log_noise.exp().reshape(fixed.shape))  # type: ignore[call-arg]
        return likelihood, psi, log_scales if self.blocks else None

    def objective(self, model: LocalModel, vector: Tensor) -> Tensor:
        """Log evidence plus the log prior of what has one."""
        likelihood, psi, log_scales = self.unpack(vector)
        value = model.evidence(likelihood, psi, log_scales) + likelihood.log_prior(psi)
        if self.scale_prior is not None and log_scales is not None:
            value = value + self.scale_prior(log_scales)
        return value

    def climb(self, model: LocalModel, *, follow: bool) -> tuple[Tensor, float]:
        """The vector that maximises the objective as `model` sees it, and the gain promised.

        By L-BFGS, within a factor e^3 of the start. With `follow`, what the model leaves out
        (`LocalModel.response`) is added to first order, so that a small enough step in this direction
        gains wherever the mode follows; far from the start the model alone can be the better guide.
        """
        start, reach = self.start(), 3.0
        response = torch.zeros_like(start)
        if follow:
            with torch.enable_grad():
                at = start.clone().requires_grad_(True)
                response = torch.autograd.grad(model.response(*self.unpack(at)), at)[0]
        free = torch.zeros_like(start).requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [free], max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        # The smooth bound keeps the line search where the linearised model means something.
        def value() -> Tensor:
            change = reach * torch.tanh(free / reach)
            return self.objective(model, start + change) + response @ change

        def closure() -> Tensor:
            loss = -value()
            free.grad = torch.autograd.grad(loss, free)[0]
            return loss.detach()

        with torch.enable_grad():
            optimizer.step(closure)
        with torch.no_grad():
            return start + reach * torch.tanh(free / reach), value().item() - self.objective(model, start).item()


def tuned(prior: BayesianNetwork, numbers: tuple[int, ...], log_scales: Tensor) -> BayesianNetwork:
    """The prior with the scale of each numbered block of its network multiplied by exp(`log_scales`)."""
    weight_prior, blocks = prior.weight_prior, prior.network.layout.blocks
    index = torch.tensor(numbers, device=log_scales.device)
    factors = log_scales.new_ones(len(blocks)).index_copy(0, index, log_scales.exp())
    new = {}
    for role in ("weight", "bias"):
        own = [i for i, block in enumerate(blocks) if block.role == role]
        if own:
            old = torch.as_tensor(getattr(weight_prior, f"{role}_scale"), dtype=factors.dtype, device=factors.device)
            new[f"{role}_scale"] = old.expand(len(own)) * factors[own]
    return replace(prior, weight_prior=replace(weight_prior, **new))


def num_scales(prior: ParametricProcess) -> int:
    """How many of the last coordinates are log scales of a prior with random scales.

    They are never part of a mode: in the joint mode of weights and their scales the scales are far
    too large, because the coordinates beside them are weights divided by scales.
    """
    if isinstance(prior, BayesianNetwork) and isinstance(prior.weight_prior, RandomScales):
        return prior.num_parameters - prior.network.num_parameters
    return 0
