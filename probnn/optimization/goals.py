"""What an optimisation is after: targets to maximise or minimise, and outcomes to keep within bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DomainError
from .evaluation import as_number
from .trials import Trial
from .units import Units

_BOUND = re.compile(r"\s*(?P<name>.+?)\s*(?P<sign><=|>=)\s*(?P<bound>[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*")


@dataclass(frozen=True)
class OutcomeBound:
    """``name <= bound`` or ``name >= bound`` on a measured outcome.

    Args:
        name: The outcome.
        upper: True for ``<=``.
        bound: The right-hand side.
    """

    name: str
    upper: bool
    bound: float

    @property
    def text(self) -> str:
        """As a person writes it."""
        return f"{self.name} {'<=' if self.upper else '>='} {self.bound:g}"

    def holds(self, value: float) -> bool:
        """Whether a value is allowed."""
        return value <= self.bound if self.upper else value >= self.bound


@dataclass(frozen=True)
class Goals:
    r"""Targets with their directions, and bounds on outcomes.

    Everything inside the optimisation is maximised: a target to be minimised has its sign changed
    (:attr:`signs`). The outcomes are the targets, in order, and then what only bounds are about.

    Args:
        maximize, minimize: Names of targets.
        bounds: Bounds on outcomes; :meth:`of` reads them from ``"impurity <= 0.5"``.

    Raises:
        DomainError: There is no target, a name is given twice, or a bound cannot be read.

    Example:
        >>> goals = Goals.of("yield", "cost", ["impurity <= 0.5"])
        >>> goals.targets, goals.outcomes, goals.signs
        (('yield', 'cost'), ('yield', 'cost', 'impurity'), (1.0, -1.0, 1.0))
    """

    maximize: tuple[str, ...]
    minimize: tuple[str, ...] = ()
    bounds: tuple[OutcomeBound, ...] = ()

    @classmethod
    def of(
        cls,
        maximize: str | Sequence[str] | None,
        minimize: str | Sequence[str] | None = None,
        subject_to: str | Sequence[str] = (),
        where: str = "BayesianOptimization",
    ) -> Goals:
        """Goals from what a person writes."""
        up, down = (_names(where, kind, given) for kind, given in (("maximize", maximize), ("minimize", minimize)))
        if not up and not down:
            raise DomainError(f"{where}: name a target, by maximize= or minimize=")
        twice = sorted({n for n in up + down if (up + down).count(n) > 1})
        if twice:
            raise DomainError(f"{where}: {twice[0]!r} is named as a target twice")
        texts = [subject_to] if isinstance(subject_to, str) else list(subject_to)
        return cls(up, down, tuple(_bound(where, text) for text in texts))

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets, those to be maximised first."""
        return self.maximize + self.minimize

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Everything that is measured: targets, then outcomes that are only bounded."""
        return tuple(dict.fromkeys((*self.targets, *(b.name for b in self.bounds))))

    @property
    def signs(self) -> tuple[float, ...]:
        """-1 for outcomes to be minimised, 1 for others."""
        return tuple(-1.0 if name in self.minimize else 1.0 for name in self.outcomes)

    def sign(self, name: str) -> float:
        """That of one outcome."""
        return -1.0 if name in self.minimize else 1.0

    def is_complete(self, trial: Trial) -> bool:
        """Whether every outcome of the trial is measured."""
        return trial.status == "complete" and all(name in trial.values for name in self.outcomes)

    def is_feasible(self, trial: Trial) -> bool:
        """Whether the trial is complete and keeps within every bound, as measured."""
        return self.is_complete(trial) and all(b.holds(trial.values[b.name]) for b in self.bounds)

    def named(self, where: str, given: Any, what: str = "value") -> dict[str, float]:
        """A number, or a mapping from names to numbers, as finite floats by outcome."""
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            if len(self.outcomes) > 1:
                raise DomainError(f"{where}: {what} must be a mapping with {', '.join(self.outcomes)}, got {given!r}")
            given = {self.outcomes[0]: given}
        found = {}
        for name, number in given.items():
            if name not in self.outcomes:
                raise DomainError(f"{where}: there is no outcome {name!r}; there are {', '.join(self.outcomes)}")
            value = as_number(number)
            if value is None:
                raise DomainError(
                    f"{where}: {what} of {name!r} must be a finite number, got {number!r}; "
                    "tell(trial, status='failed') records a failure"
                )
            found[name] = value
        return found

    def scores(self, trial: Trial) -> tuple[float, ...]:
        """The targets of a trial, more being better."""
        return tuple(self.sign(name) * trial.values[name] for name in self.targets)

    def constraint_functions(self, units: Sequence[Units] | None = None) -> list[Callable[[Tensor], Tensor]]:
        """The bounds as BoTorch takes them: functions of samples ``... x outcomes`` in our signs, at most 0 if held.

        Args:
            units: Those of the samples, one an outcome; excesses come in them too. BoTorch smooths a bound over a
                thousandth of one unit, with fat tails. None: a person's units.

        Returns:
            One function a bound.
        """
        given = [Units(0.0, 1.0)] * len(self.outcomes) if units is None else units
        index = [self.outcomes.index(b.name) for b in self.bounds]
        return [_Held(i, self.sign(b.name), b, given[i]) for i, b in zip(index, self.bounds, strict=True)]

    def pareto(self, trials: Sequence[Trial]) -> list[Trial]:
        """The feasible trials that no other feasible one beats in all targets, best in the first target first."""
        able = [t for t in trials if self.is_feasible(t)]
        if not able:
            return []
        scores = torch.tensor([self.scores(t) for t in able], dtype=torch.double)
        better = (scores[:, None] >= scores).all(-1) & (scores[:, None] > scores).any(-1)  # row beats column
        front = [able[i] for i in (~better.any(0)).nonzero().squeeze(-1).tolist()]
        return sorted(front, key=self.scores, reverse=True)

    def reference_point(self, scores: Tensor) -> Tensor:
        """A point that every good trial should beat, from scores ``n x targets``: the nadir of the front, less 10 %.

        (Ishibuchi, Imada, Setoguchi and Nojima, 2018, the rule that BoTorch has too.)
        """
        from botorch.utils.multi_objective.hypervolume import infer_reference_point
        from botorch.utils.multi_objective.pareto import is_non_dominated

        size = scores.abs().amax(0)
        size = torch.where(size > 0, size, 1.0)  # BoTorch takes a front narrower than 1e-7 for a point, in any units
        return size * infer_reference_point(scores[is_non_dominated(scores)] / size)

    def hypervolume(self, trials: Sequence[Trial], reference: Mapping[str, float] | None = None) -> float:
        """The volume that the feasible trials dominate above a reference point; for one target, the lead over it.

        Args:
            trials: The trials.
            reference: A value of each target; None: :meth:`reference_point` of these trials, so that two sets of
                trials can only be compared with one reference.

        Returns:
            The volume, in the product of the targets' units.

        Raises:
            DomainError: The reference has no value of a target.
        """
        from botorch.utils.multi_objective.hypervolume import Hypervolume

        able = [t for t in trials if self.is_feasible(t)]
        if not able:
            return 0.0
        scores = torch.tensor([self.scores(t) for t in able], dtype=torch.double)
        if reference is None:
            at = self.reference_point(scores)
        else:
            missing = [n for n in self.targets if n not in reference]
            if missing:
                raise DomainError(f"Goals.hypervolume: the reference has no value of {missing[0]!r}")
            at = torch.tensor([self.sign(n) * reference[n] for n in self.targets], dtype=torch.double)
        above = scores[(scores > at).all(-1)]
        return float(Hypervolume(ref_point=at).compute(above)) if len(above) else 0.0


class _Held:
    def __init__(self, index: int, sign: float, bound: OutcomeBound, units: Units):
        # A model's v = sign * y; y <= bound where v <= sign * bound, or, of what is minimised, v >= sign * bound.
        self.index, self.limit = index, units.inside(sign * bound.bound)
        self.upper = bound.upper == (sign > 0)

    def __call__(self, samples: Tensor) -> Tensor:
        excess = samples[..., self.index] - self.limit
        return excess if self.upper else -excess


def _names(where: str, kind: str, given: str | Sequence[str] | None) -> tuple[str, ...]:
    names = () if given is None else (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise DomainError(f"{where}: {kind} must name targets, got {name!r}")
    return names


def _bound(where: str, text: str) -> OutcomeBound:
    match = _BOUND.fullmatch(text) if isinstance(text, str) else None
    try:
        bound = float(match["bound"]) if match else float("nan")
    except ValueError:
        bound = float("nan")
    if match is None or not math.isfinite(bound) or any(sign in match["name"] for sign in "<>="):
        raise DomainError(
            f"{where}: subject_to needs bounds such as 'impurity <= 0.5', got {text!r} (an outcome, <= or >=, a number)"
        )
    return OutcomeBound(match["name"], match["sign"] == "<=", bound)
