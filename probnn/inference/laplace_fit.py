"""One fit by Laplace's method: the mode, its curvature and the hyper-parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConvergenceError, ConvergenceWarning, UnsupportedError
from ..likelihoods.continuous import _LogScale
from ..priors import NormalWeights
from ..process import BayesianNetwork, ParametricProcess
from .base import Session
from .gaussian import GaussianWeightProcess
from .hyper import MAX_JACOBIAN, MAX_SIDE, HyperParameters, num_scales, tuned
from .local import LocalModel
from .newton import Step, ascend
from .optimize import maximize, refine
from .start import prior_scales, warm
from .target import Target

if TYPE_CHECKING:
    from .laplace import Laplace


class LaplaceFit:
    """One fit under way: the target with its current hyper-parameters, and the point z = (theta, psi)."""

    def __init__(self, method: Laplace, target: Target, session: Session):
        self.method, self.target, self.session, self.where = method, target, session, "Laplace.fit"
        self.steps, self.gradients, self.stopped, self.start_steps = 0, 0, False, method.steps
        self.trace: dict[str, Tensor] = {}
        prior = target.prior
        weight_prior = getattr(prior, "weight_prior", None)
        self.hierarchical = num_scales(prior) > 0
        if method.tune and not (isinstance(prior, BayesianNetwork) and type(weight_prior) is NormalWeights):
            raise UnsupportedError(
                f"{self.where}: tune=True sets the scales of a NormalWeights prior, got "
                f"{type(prior if weight_prior is None else weight_prior).__name__}; use tune=False (random "
                "scales, as of HierarchicalWeights, are set by the evidence anyway)"
            )
        self.weights = prior.num_parameters - num_scales(prior)  # log scales come last
        self.structure, self.support = self._structure()
        self.blocks: tuple[int, ...] = ()
        if method.tune or self.hierarchical:
            kept = None if self.support is None else set(self.support.tolist())
            slices = enumerate(s for _, s in prior.layout.slices() if s.stop <= self.weights)
            self.blocks = tuple(i for i, s in slices if kept is None or s.start in kept)

    def _structure(self) -> tuple[str, Tensor | None]:
        """The structure chosen, and the coordinates it is about (None: all)."""
        structure, prior = self.method.structure, self.target.prior
        rows, every = self.target.X.shape[0] * prior.output_dim, None
        if self.weights < prior.num_parameters:
            every = torch.arange(self.weights, device=prior.device)
        if structure == "auto":
            structure = "last_layer"
            if min(rows, self.weights) <= MAX_SIDE and rows * self.weights <= MAX_JACOBIAN:
                structure = "full"
        if structure != "last_layer":
            return structure, every
        support = _last_layer(prior)
        if self.method.structure == "last_layer":
            if support is None:
                raise UnsupportedError(
                    f"{self.where}: structure='last_layer' needs a BayesianNetwork prior whose coordinates have the "
                    f"names of its network's weights, got {type(prior).__name__}; use 'full' or 'diagonal'"
                )
            return structure, support
        small = support is not None and support.numel() <= MAX_SIDE and rows * support.numel() <= MAX_JACOBIAN
        return ("last_layer", support) if small else ("diagonal", every)

    def run(self, init: Any) -> GaussianWeightProcess:
        method, session = self.method, self.session
        self.start_steps = method.steps if init is None else max(1, method.steps // 4)
        with session.bar(self.start_steps, "mode") as bar:
            z = self._start(init, bar)
        reached = self.stopped
        if self.structure != "full" and not self.stopped:
            z, reached = self._refine(z)
        if self.structure == "diagonal" or self.stopped:
            model = self._model(z)
        else:
            z, model, reached = self._newton(z)
        hyper, settled = self._hyper(z), True
        if hyper.start().numel() and not self.stopped:
            z, model, hyper, reached, settled = self._take_turns(z, model, hyper, reached)
        if not reached:
            activation = getattr(getattr(self.target.prior, "network", None), "activation", None)
            session.warn(
                f"{self.where}: the mode was not reached in {method.polish_steps} steps; raise polish_steps or steps"
                + (", or use a smooth activation (relu has kinks)" if activation == "relu" else ""),
                ConvergenceWarning,
            )
        if not settled:
            session.warn(
                f"{self.where}: the hyper-parameters still moved after {method.rounds} rounds; raise rounds",
                ConvergenceWarning,
            )
        spread, log_evidence = model.spread(), hyper.objective(model, hyper.start()).item()
        if not reached and self.structure != "diagonal":
            # The expansion has the nats in it that the way to the mode would add, or so it promises.
            log_evidence -= Step(model, self.target.value_and_grad(z)[1]).promise().item()
        theta, psi = self.target.split(z)
        likelihood = self.target.likelihood
        noise = getattr(likelihood, "noise", None)
        if hyper.noise and torch.is_tensor(noise) and not noise.ndim:
            likelihood = replace(likelihood, noise=noise.item())  # type: ignore[call-arg]
        info = session.info(
            steps=self.steps, gradients=self.gradients, converged=reached and settled and not self.stopped,
            log_evidence=log_evidence, trace=self.trace,
        )  # fmt: skip
        return GaussianWeightProcess(
            self.target.prior, theta, spread.scale, spread.directions, spread.gains, self.support, psi,
            likelihood=likelihood, linearized=method.linearized, info=info,
        )  # fmt: skip

    def _start(self, init: Any, bar: Any) -> Tensor:
        """The best of several starts after Adam on the weights; scales and psi stay at their prior medians."""
        target, method, P = self.target, self.method, self.target.prior.num_parameters
        generator = self.session.generator
        if isinstance(init, GaussianWeightProcess) and init.loc.shape[0] == P:
            psi = init.psi_mean
            if psi.shape[0] != target.size - P:
                psi = target.likelihood.prior_median(dtype=init.dtype, device=init.device)
            z = torch.cat([init.loc, psi]).to(target.X).unsqueeze(0)
        elif init is not None:
            z = warm(target, init, method.num_starts, generator)
        else:
            z = target.start((method.num_starts,), generator)
            z[:, self.weights : P] = 0.0
        scales = prior_scales(target, generator)
        free = torch.arange(target.size, device=z.device) < self.weights

        def density(v: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = target.value_and_grad(v * scales)
            return value, gradient * scales

        def tell(step: int, v: Tensor, value: Tensor) -> bool:
            bar.update(1 if step else 0)
            if step < self.start_steps:  # the last state is the first of the next phase
                total = self.start_steps + method.rounds
                self.stopped = self.session.stop(step, total, {"phase": "mode", "log_prob": value})
            return self.stopped

        v, trace = maximize(density, z / scales, steps=self.start_steps, lr=method.lr, free=free, callback=tell)
        z = v * scales
        self.trace["log_prob"] = trace
        self.steps, self.gradients = trace.shape[0] - 1, trace.numel()
        value = target.log_prob(z)
        value = torch.where(value.isfinite(), value, -torch.inf)
        if value.isneginf().all():
            raise ConvergenceError(
                f"{self.where}: the density is not finite at any of {len(z)} starts; scale the data, or lower lr",
                partial=z,
            )
        return z[value.argmax()]

    def _model(self, z: Tensor) -> LocalModel:
        groups = None
        if self.blocks:
            sizes = [self.target.prior.layout.blocks[i].size for i in self.blocks]
            groups = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(z.device)
        return LocalModel(self.where, self.target, z, self.support, groups, self.structure == "diagonal")

    def _refine(self, z: Tensor) -> tuple[Tensor, bool]:
        """All weights on to the mode, by L-BFGS in the metric of the diagonal posterior."""
        every = torch.arange(self.weights, device=z.device)

        def metric(at: Tensor) -> Callable[[Tensor], Tensor]:
            scale = LocalModel(self.where, self.target, at, every, diagonal=True).spread().scale
            variance = torch.cat([scale.square(), at.new_zeros(at.shape[0] - self.weights)])
            return lambda gradient: variance * gradient

        # A diagonal evidence moves by nats within a tenth of a standard deviation, hence the smaller tolerance.
        steps, tolerance = self.method.polish_steps, 1e-2 * self.method.tolerance
        z, used, reached = refine(self.target.value_and_grad, z, metric, steps=steps, tolerance=tolerance)
        self.steps, self.gradients = self.steps + used, self.gradients + used
        return z, reached

    def _newton(self, z: Tensor) -> tuple[Tensor, LocalModel, bool]:
        """The support on to the mode."""
        method = self.method
        found = ascend(
            self.target.value_and_grad, self._model, z, steps=method.polish_steps, tolerance=method.tolerance
        )
        self.steps, self.gradients = self.steps + found.steps, self.gradients + found.gradients
        return found.z, found.model, found.reached

    def _hyper(self, z: Tensor) -> HyperParameters:
        """The hyper-parameters the evidence sets, at their current values."""
        likelihood, prior = self.target.likelihood, self.target.prior
        theta, psi = self.target.split(z)
        fixed = isinstance(likelihood, _LogScale) and likelihood.noise is not None
        noise = self.method.tune and fixed and self.target.noise_variance is None
        scale_prior = None
        if self.hierarchical and self.blocks:
            u, at = theta[self.weights :], torch.tensor(self.blocks, device=z.device)
            network, law = prior.network, prior.weight_prior._scale_law  # type: ignore[attr-defined]

            def scale_prior(change: Tensor) -> Tensor:
                return law(network.layout, u.index_add(0, at, change))[0].sum()

        return HyperParameters(likelihood, psi, len(self.blocks), scale_prior, noise)

    def _take_turns(
        self, z: Tensor, model: LocalModel, hyper: HyperParameters, reached: bool
    ) -> tuple[Tensor, LocalModel, HyperParameters, bool, bool]:
        """Hyper-parameters by the evidence at the mode, then the mode again, until neither moves the other."""
        method, settled = self.method, False
        value = hyper.objective(model, hyper.start()).item()
        trace = [value]
        value = value if reached else -math.inf
        with self.session.bar(method.rounds, "evidence") as bar:
            for step in range(method.rounds + 1):
                proposal, promise = hyper.climb(model, follow=True)
                settled = promise < method.tolerance
                if settled or step == method.rounds:
                    break
                at, total = self.start_steps + step, self.start_steps + method.rounds
                self.stopped = self.session.stop(at, total, {"phase": "evidence", "log_evidence": value})
                if self.stopped:
                    break
                better = self._step(hyper, proposal, z, value)
                if better is None:
                    better = self._step(hyper, hyper.climb(model, follow=False)[0], z, value)
                if better is None:  # neither way gains at any length: the mode that was followed ends here
                    settled = True
                    break
                z, model, hyper, reached, new = better
                settled, value = new - value < method.tolerance, new
                trace.append(value)
                bar.update(1, log_evidence=value)
                if settled:
                    break
        self.trace["log_evidence"] = z.new_tensor(trace)
        return z, model, hyper, reached, settled

    def _step(
        self, hyper: HyperParameters, proposal: Tensor, z: Tensor, value: float
    ) -> tuple[Tensor, LocalModel, HyperParameters, bool, float] | None:
        """The longest of some steps towards the proposal after which the mode has more evidence; None: no step."""
        before, start = self.target, hyper.start()
        for halving in range(6):
            moved = self._at(hyper, start + 0.5**halving * (proposal - start), z, before)
            if self.structure == "diagonal":
                moved, reached = self._refine(moved)
                model = self._model(moved)
            else:
                moved, model, reached = self._newton(moved)
            there = self._hyper(moved)
            new = there.objective(model, there.start()).item()
            # Short of a mode the expansion promises evidence that is not there.
            if reached and new > value:
                return moved, model, there, reached, new
        self.target = before
        return None

    def _at(self, hyper: HyperParameters, vector: Tensor, z: Tensor, before: Target) -> Tensor:
        """Move the target to other hyper-parameters; returns z with their psi and scales, the same function."""
        likelihood, psi, change = hyper.unpack(vector)
        prior, theta = before.prior, before.split(z)[0].clone()
        if self.hierarchical and change is not None:
            for i, s in enumerate(s for _, s in prior.layout.slices() if s.stop <= self.weights):
                if i in self.blocks:
                    step = change[self.blocks.index(i)]
                    theta[s] *= (-step).exp()
                    theta[self.weights + i] += step
        elif change is not None and isinstance(prior, BayesianNetwork):
            prior = tuned(prior, self.blocks, change)
        self.target = replace(before, prior=prior, likelihood=likelihood)
        return torch.cat([theta, psi])


def _last_layer(prior: ParametricProcess) -> Tensor | None:
    """Indices of the last layer's weights among the coordinates; None where the names do not tell."""
    if not isinstance(prior, BayesianNetwork):
        return None
    blocks = prior.network.layout.blocks
    layer = blocks[-1].name.rpartition(".")[0]
    names = {block.name for block in blocks if block.name.rpartition(".")[0] == layer}
    found = [torch.arange(s.start, s.stop) for block, s in prior.layout.slices() if block.name in names]
    return torch.cat(found).to(prior.device) if len(found) == len(names) else None
