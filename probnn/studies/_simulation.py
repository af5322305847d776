"""One cell of a study of convergence: data sets drawn, fitted and measured, many replicates at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import moe, validation
from ..errors import DomainError
from ..random import generator_from
from ._estimators import Estimator, Fitted, SelectionSweep
from ._inputs import Inputs
from ._losses import Losses
from ._truths import record, record_of_measure

_WHERE = "studies.MoESimulation"
# Counts up when the same settings would give other numbers.
PROTOCOL = 1
# Rows of data sets, all replicates of a batch together, that are worked on at once.
_ROWS = 500_000
_DATA, _STARTS = 0, 1  # streams of a replicate


@dataclass(frozen=True, eq=False)
class MoESimulation:
    r"""Draws data sets of a mixture of experts, fits them and measures how far the fits are from the truth.

    Called with a cell ``{"estimator": name, "n": n}`` and the seeds of its replicates it returns an array for every
    output. A replicate depends on its seed alone: its data on one stream of it, so that all estimators see the same
    data for the same seed, and the starts of its fit on another. Alone or in a batch it is the same up to rounding,
    which is amplified only where the likelihood is nearly flat, or has kinks as that of a Laplace gate.

    Of an :class:`Estimator`: the losses, ``log_likelihood``, ``gain`` (over the log-likelihood of the truth, in nats;
    a maximum is above it), ``num_iter`` and ``converged`` (1 or 0) and ``fit_status``: 0 converged, 1 separated,
    2 saddle, 3 max_iter, 4 degenerate, 5 failed, as in :class:`probnn.moe.MoEFit`. The losses of a fit that failed are
    NaN. Of a :class:`SelectionSweep`: its outputs.

    =======================  =====================================================================================
    name                     what it is
    =======================  =====================================================================================
    ``voronoi``              :func:`probnn.moe.voronoi_loss` of the gate's kind, the least over translations: D1 where
                             as many experts are fitted as there are, D2 and its kin where there are more
    ``voronoi_truth``        the same where the true masses are scaled, as in the papers' definition
    ``voronoi_raw``          the same of parameters as they are, as in the papers' code
    ``voronoi_exact``        kind ``"exact"`` whatever the number of experts
    ``voronoi_temperature``  kind ``"temperature"``: temperature, weights and biases as they are
    ``total_variation``,     :func:`probnn.moe.density_distance` of the conditional densities, averaged over the
    ``hellinger``            law of the inputs
    ``intercept_error``,     distances of the parameters of the fitted experts from those of the true expert nearest to
    ``coef_error``,          each, a mean with the weights that the fitted gate gives them on average over the inputs
    ``variance_error``
    ``temperature_error``    absolute difference of the temperatures
    =======================  =====================================================================================

    Args:
        truth: The true measure, of one replicate.
        inputs: ``"uniform"`` on the unit cube, ``"grid"`` (equally spaced, of one input), ``"gate"`` (the law of the
            inputs that a Gaussian gate has), or a function of (n, generator) that returns ``n x d``.
        estimators: By name; either estimators or selections.
        losses: Names of losses.
        num_points: Inputs in the mean that stands for an expectation over their law.
        bar_r: Exponents of the loss in cells of more than three atoms, for which none is proven; None: 2m for m atoms,
            a heuristic.

    Raises:
        DomainError: Settings do not go together.

    Example:
        >>> truth = moe.MixingMeasure([0.5, 0.], [[3.], [0.]], [1., -1.], [[2.], [-1.5]], [.16, .25])
        >>> simulate = MoESimulation(truth, {"mle": Estimator(num_experts=2)}, losses=("voronoi",))
        >>> out = simulate({"estimator": "mle", "n": 200}, [1, 2, 3])
        >>> out["voronoi"].shape, out["converged"]
        ((3,), array([1., 1., 1.]))
    """

    truth: moe.MixingMeasure
    estimators: Mapping[str, Estimator | SelectionSweep]
    inputs: str | Callable[[int, torch.Generator], Tensor] = "uniform"
    losses: tuple[str, ...] = ("voronoi", "total_variation")
    num_points: int = 256
    bar_r: Mapping[int, float] | None = None
    _inputs: Inputs = field(init=False, repr=False)
    _losses: Losses | None = field(init=False, repr=False)
    _model: moe.GaussianMoE = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.truth, moe.MixingMeasure) or self.truth.batch_shape:
            raise DomainError(f"{_WHERE}: truth must be a moe.MixingMeasure of one replicate, got {self.truth!r}")
        if self.truth.coef.dtype != torch.double:
            raise DomainError(f"{_WHERE}: truth must be of double precision, got {self.truth.coef.dtype}")
        kinds = {type(e) for e in self.estimators.values()} if isinstance(self.estimators, Mapping) else set()
        if len(kinds) != 1 or not kinds <= {Estimator, SelectionSweep}:
            raise DomainError(
                f"{_WHERE}: estimators must map names to studies.Estimator, or to studies.SelectionSweep, "
                f"got {self.estimators!r}"
            )
        validation.positive_int(_WHERE, "num_points", self.num_points)
        inputs = Inputs(self.inputs, self.truth)
        selects = kinds == {SelectionSweep}
        losses = None
        if not selects:
            losses = Losses(tuple(self.losses), self.truth, inputs.reference(self.num_points), self.bar_r)
        object.__setattr__(self, "losses", () if selects else tuple(self.losses))
        object.__setattr__(self, "estimators", dict(self.estimators))
        object.__setattr__(self, "_inputs", inputs)
        object.__setattr__(self, "_losses", losses)
        object.__setattr__(self, "_model", moe.GaussianMoE.from_mixing_measure(self.truth))

    def __call__(self, cell: Mapping[str, Any], seeds: list[int]) -> dict[str, np.ndarray]:
        """The outputs of some replicates of a cell.

        Args:
            cell: ``{"estimator": name, "n": n}``.
            seeds: A seed a replicate.

        Returns:
            The outputs by name, ``len(seeds)`` each.

        Raises:
            DomainError: There is no such cell.
        """
        estimator, n = self._cell(cell)
        step = max(1, _ROWS // n)
        parts = [self._batch(estimator, n, list(seeds[i : i + step])) for i in range(0, len(seeds), step)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def identity(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """All that determines the rows of a cell beside it and their seeds, as JSON can hold it."""
        estimator, _ = self._cell(cell)
        return {
            "protocol": PROTOCOL,
            "truth": record_of_measure(self.truth),
            "inputs": self._inputs.record(),
            "losses": list(self.losses),
            "num_points": self.num_points,
            "bar_r": record(self.bar_r, "bar_r"),
            "estimator": estimator.record(),
        }

    def cost(self, cell: Mapping[str, Any]) -> float:
        """How long a replicate takes, up to a factor: rows, experts and starts."""
        estimator, n = self._cell(cell)
        experts = (estimator.num_experts,) if isinstance(estimator, Estimator) else estimator.candidates
        return float(n * sum(k * k for k in experts) * estimator.num_restarts)

    def sample(self, n: int, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """The data sets of some replicates.

        Args:
            n: Rows of each.
            seeds: A seed a replicate.

        Returns:
            Inputs ``R x n x d`` (``n x d`` where all have the same) and outcomes ``R x n x m``.
        """
        X, Y = [], []
        for seed in seeds:
            generator = generator_from(stream(seed, _DATA))
            X.append(self._inputs.draw(n, generator))
            Y.append(self._model.sample_outcomes(X[-1], generator=generator))
        return X[0] if self._inputs.shared else torch.stack(X), torch.stack(Y)

    def _cell(self, cell: Mapping[str, Any]) -> tuple[Estimator | SelectionSweep, int]:
        if set(cell) != {"estimator", "n"} or cell["estimator"] not in self.estimators:
            raise DomainError(
                f"{_WHERE}: a cell is {{'estimator': name, 'n': n}} with one of {', '.join(self.estimators)}, got "
                f"{dict(cell)}"
            )
        return self.estimators[cell["estimator"]], validation.positive_int(_WHERE, "n", cell["n"])

    def _batch(self, estimator: Estimator | SelectionSweep, n: int, seeds: list[int]) -> dict[str, np.ndarray]:
        X, Y = self.sample(n, seeds)
        streams = [stream(seed, _STARTS) for seed in seeds]
        if isinstance(estimator, SelectionSweep):
            return estimator.choose(self.truth, X, Y, streams)
        fitted = estimator.fit(self.truth, X, Y, streams)
        truth = self._model.log_prob(X.expand(len(seeds), -1, -1), Y).sum(-1)
        out = self._measured(fitted)
        out |= {
            "log_likelihood": fitted.log_likelihood,
            "gain": fitted.log_likelihood - truth,
            "num_iter": fitted.num_iter.double(),
            "converged": fitted.converged.double(),
            "fit_status": fitted.status.double(),
        }
        return {name: value.numpy() for name, value in out.items()}

    def _measured(self, fitted: Fitted) -> dict[str, Tensor]:
        """The losses, NaN where the fit failed and there is nothing to measure."""
        there = fitted.log_likelihood.isfinite()
        out = {name: torch.full_like(fitted.log_likelihood, torch.nan) for name in self.losses}
        if self._losses is not None and there.any():
            for name, value in self._losses(fitted.model.mixing_measure()[there]).items():
                out[name][there] = value
        return out


def stream(seed: int, number: int) -> int:
    """The seed of one of a replicate's streams."""
    word = np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1, np.uint64)[0]
    return int(word >> np.uint64(1))
