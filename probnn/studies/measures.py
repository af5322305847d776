"""Performance measures of simulation studies, each with its Monte Carlo standard error.

The standard error of a measure (MCSE) is that of another set of as many replicates: sources are Morris, White and
Crowther (2019), Using simulation studies to evaluate statistical methods, Statistics in Medicine 38, table 6, and
for the median Maritz and Jarrett (1978), A note on estimating the variance of the sample median, JASA 73. With one
replicate, or with infinite values where they make the measure infinite, the MCSE is NaN: there is none.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from ..errors import DomainError
from . import _moments


class Measure(ABC):
    """What summaries compute of the replicates of a cell; own measures are frozen dataclasses derived from it.

    :func:`summarise` hands over the rows that are complete and in which no input is NaN; infinite values are there.

    Example:
        >>> @dataclass(frozen=True)
        ... class Largest(Measure):
        ...     output: str
        ...     name: str | None = None
        ...     inputs = property(lambda self: (self.output,))
        ...     compute = lambda self, x: (x.max(), np.nan)
        >>> Largest("loss", name="largest").label
        'largest'
    """

    name: str | None

    @property
    def label(self) -> str:
        """What the measure is called in summaries: `name`, or words made of its inputs."""
        return self.name if self.name is not None else self._words()

    @property
    @abstractmethod
    def inputs(self) -> tuple[str | float, ...]:
        """What :meth:`compute` takes: names of columns, or numbers that are the same for all replicates."""

    @abstractmethod
    def compute(self, *columns: np.ndarray) -> tuple[float, float]:
        """Value and Monte Carlo standard error.

        Args:
            *columns: One array of the replicates for each of `inputs`, possibly empty.

        Returns:
            Both, NaN where undefined.
        """

    def _words(self) -> str:
        return f"{type(self).__name__} of {', '.join(map(str, self.inputs))}"


@dataclass(frozen=True)
class _OfOutput(Measure):
    """A measure of one output alone."""

    output: str
    name: str | None = None

    def __post_init__(self) -> None:
        _check_names(self, output=self.output)

    @property
    def inputs(self) -> tuple[str | float, ...]:
        """The columns, and numbers, that :meth:`compute` takes."""
        return (self.output,)


@dataclass(frozen=True)
class Mean(_OfOutput):
    r"""Mean :math:`\bar x` of an output, with MCSE :math:`\sqrt{\sum_i (x_i - \bar x)^2 / (n (n - 1))}`.

    Args:
        output: Column of the output.
        name: What it is called; None: ``"mean <output>"``.

    Raises:
        DomainError: A name is no text.

    Example:
        >>> import numpy as np
        >>> Mean("loss").compute(np.array([1.0, 2.0, 3.0]))
        (2.0, 0.5773502691896257)
    """

    def compute(self, *columns: np.ndarray) -> tuple[float, float]:
        """Value and Monte Carlo standard error."""
        return _moments.mean(columns[0])

    def _words(self) -> str:
        return f"mean {self.output}"


@dataclass(frozen=True)
class Median(_OfOutput):
    r"""Median of an output.

    The MCSE is the standard deviation of the median of a bootstrap sample, in closed form (Maritz and Jarrett,
    1978). With the sorted values :math:`x_{(i)}` and the distribution function :math:`I` of
    :math:`\mathrm{Beta}(\tfrac{n+1}2, \tfrac{n+1}2)`,

    .. math:: w_i = I(\tfrac in) - I(\tfrac{i-1}n), \quad
              \mathrm{MCSE}^2 = \sum_i w_i x_{(i)}^2 - \Bigl(\sum_i w_i x_{(i)}\Bigr)^2.

    That is exact for odd n, and interpolates for even n, where the median lies between two values. If the median is
    finite and some values are not, bootstrap samples of infinite medians are left out, otherwise it were infinite.

    Args:
        output: Column of the output.
        name: What it is called; None: ``"median <output>"``.

    Raises:
        DomainError: A name is no text.

    Example:
        >>> import numpy as np
        >>> value, error = Median("loss").compute(np.array([1.0, 2.0, 3.0]))
        >>> value, round(error, 4)
        (2.0, 0.7201)
    """

    def compute(self, *columns: np.ndarray) -> tuple[float, float]:
        """Value and Monte Carlo standard error."""
        from scipy.special import betainc

        x = np.sort(columns[0])
        n = len(x)
        if not n:
            return math.nan, math.nan
        value = float(x[(n - 1) // 2]) / 2 + float(x[n // 2]) / 2
        if n == 1 or not math.isfinite(value):
            return value, math.nan
        weights = np.diff(betainc((n + 1) / 2, (n + 1) / 2, np.arange(n + 1) / n))
        kept = np.isfinite(x)
        weights, (d, scale) = weights[kept] / weights[kept].sum(), _moments.deviations(x[kept])
        return value, _moments.times_power(math.sqrt(float(weights @ (d - weights @ d) ** 2)), scale)

    def _words(self) -> str:
        return f"median {self.output}"


@dataclass(frozen=True)
class Bias(Measure):
    r"""Bias :math:`\bar e` of an estimate, :math:`e_i = x_i - \theta_i`; relative: of :math:`e_i / \theta_i`.

    Its MCSE is :math:`\sqrt{\sum_i (e_i - \bar e)^2 / (n (n - 1))}`.

    Args:
        output: Column of the estimate.
        truth: What it estimates: a number, or the name of an output or axis.
        relative: Whether errors are divided by the truth (with its sign); NaN for cells where a truth is 0.
        name: What it is called; None: ``"bias <output>"`` or ``"relative bias <output>"``.

    Raises:
        DomainError: A name is no text, or the truth is neither text nor a finite number.

    Example:
        >>> import numpy as np
        >>> Bias("estimate", truth=2.0).compute(np.array([2.5, 2.5, 1.0, 3.0]), np.full(4, 2.0))[0]
        0.25
    """

    output: str
    truth: float | str
    relative: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        _check_names(self, output=self.output)
        _check_truth(self, self.truth)

    @property
    def inputs(self) -> tuple[str | float, ...]:
        """The columns, and numbers, that :meth:`compute` takes."""
        return (self.output, self.truth)

    def compute(self, *columns: np.ndarray) -> tuple[float, float]:
        """Value and Monte Carlo standard error."""
        x, truth = columns
        e = _differences(x, truth)
        if self.relative and (truth == 0).any():
            return math.nan, math.nan
        return _moments.mean(e / truth if self.relative else e)

    def _words(self) -> str:
        return f"{'relative bias' if self.relative else 'bias'} {self.output}"


@dataclass(frozen=True)
class RMSE(Measure):
    r"""Root mean squared error :math:`\sqrt m`, :math:`m = \frac1n \sum_i e_i^2`, :math:`e_i = x_i - \theta_i`.

    The MCSE is that of the jackknife (Efron and Tibshirani, 1993, An introduction to the bootstrap, chapter 11):
    with :math:`R_i` the RMSE without replicate i, :math:`\mathrm{MCSE}^2 = \frac{n-1}n \sum_i (R_i - \bar R)^2`.
    The delta method, applied to the MCSE of m by Morris, White and Crowther (2019), agrees for many replicates and
    is too small for few: by a fifth for the errors of 10 exponential estimates, where the jackknife is right.

    Args:
        output: Column of the estimate.
        truth: What it estimates: a number, or the name of an output or axis.
        name: What it is called; None: ``"RMSE <output>"``.

    Raises:
        DomainError: A name is no text, or the truth is neither text nor a finite number.

    Example:
        >>> import numpy as np
        >>> RMSE("estimate", truth=0.0).compute(np.array([3.0, -3.0, 3.0]), np.zeros(3))
        (3.0, 0.0)
    """

    output: str
    truth: float | str
    name: str | None = None

    def __post_init__(self) -> None:
        _check_names(self, output=self.output)
        _check_truth(self, self.truth)

    @property
    def inputs(self) -> tuple[str | float, ...]:
        """The columns, and numbers, that :meth:`compute` takes."""
        return (self.output, self.truth)

    def compute(self, *columns: np.ndarray) -> tuple[float, float]:
        """Value and Monte Carlo standard error."""
        e = _differences(*columns)
        n = len(e)
        if not n or not np.isfinite(e).all():
            return math.sqrt(_moments.mean(np.abs(e))[0]), math.nan  # infinite or NaN
        scale = _moments.exponent(e)
        squares = np.ldexp(e, -scale) ** 2
        total = float(squares.sum())
        # Sums of squares, rounded, are not below any of their terms.
        error = _moments.jackknife(np.sqrt((total - squares) / (n - 1))) if n > 1 else math.nan
        return _moments.times_power(math.sqrt(total / n), scale), _moments.times_power(error, scale)

    def _words(self) -> str:
        return f"RMSE {self.output}"


@dataclass(frozen=True)
class EmpiricalSE(_OfOutput):
    r"""Empirical standard error of an estimate: the standard deviation s of its replicates (divisor n - 1).

    The MCSE is that of the jackknife (Efron and Tibshirani, 1993): with :math:`s_i` the standard deviation without
    replicate i, :math:`\mathrm{MCSE}^2 = \frac{n-1}n \sum_i (s_i - \bar s)^2`, which needs three replicates. For
    many normal estimates that is the :math:`s / \sqrt{2 (n - 1)}` of Morris, White and Crowther (2019), which is
    too small for estimates of heavier tails: by half for 100 exponential ones.

    Args:
        output: Column of the estimate.
        name: What it is called; None: ``"empirical SE <output>"``.

    Raises:
        DomainError: A name is no text.

    Example:
        >>> import numpy as np
        >>> EmpiricalSE("estimate").compute(np.array([1.0, 2.0, 3.0]))[0]
        1.0
    """

    def compute(self, *columns: np.ndarray) -> tuple[float, float]:
        """Value and Monte Carlo standard error."""
        x = columns[0]
        n = len(x)
        if n < 2 or not np.isfinite(x).all():
            return math.nan, math.nan
        d, scale = _moments.deviations(x)
        d = d - d.mean()
        total = float(d @ d)
        s = _moments.times_power(math.sqrt(total / (n - 1)), scale)
        if n == 2:
            return s, math.nan
        # Where all others are equal, rounding may leave less than nothing.
        others = np.maximum(total - n / (n - 1) * d**2, 0.0) / (n - 2)
        return s, _moments.times_power(_moments.jackknife(np.sqrt(others)), scale)

    def _words(self) -> str:
        return f"empirical SE {self.output}"


@dataclass(frozen=True)
class Rate(_OfOutput):
    r"""Share p of replicates with an event, with MCSE :math:`\sqrt{p (1 - p) / n}`.

    An MCSE of 0 where p is 0 or 1 does not say that p is known: a 95% upper bound of a rate of 0 is about 3 / n.

    Args:
        output: Column that is 1 or true where the event happened, 0 or false where not.
        name: What it is called; None: ``"rate <output>"``.

    Raises:
        DomainError: A name is no text; in `compute`, the output is not 0 or 1.

    Example:
        >>> import numpy as np
        >>> Rate("rejected").compute(np.array([1.0, 0.0, 0.0, 0.0]))
        (0.25, 0.21650635094610965)
    """

    def compute(self, *columns: np.ndarray) -> tuple[float, float]:
        """Value and Monte Carlo standard error."""
        return _moments.share(self.label, self.output, columns[0])

    def _words(self) -> str:
        return f"rate {self.output}"


@dataclass(frozen=True)
class Coverage(Measure):
    r"""Share p of intervals that hold the truth, with MCSE :math:`\sqrt{p (1 - p) / n}`.

    Intervals are closed; those whose lower end is above the upper one hold nothing; ends may be infinite.

    Args:
        output: Column that is 1 or true where the interval holds the truth; or
        lower, upper: columns of its ends, together with
        truth: what it should hold: a number, or the name of an output or axis.
        name: What it is called; None: ``"coverage <output>"`` or ``"coverage <lower>..<upper>"``.

    Raises:
        DomainError: Neither or both of `output` and the ends are given, or one of these is of the wrong type; in
            `compute`, the output is not 0 or 1.

    Example:
        >>> import numpy as np
        >>> low, high = np.array([-1.0, 0.5]), np.array([1.0, 2.0])
        >>> Coverage(lower="low", upper="high", truth=0.0).compute(low, high, np.zeros(2))[0]
        0.5
    """

    output: str | None = None
    lower: str | None = None
    upper: str | None = None
    truth: float | str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        ends = (self.lower, self.upper, self.truth)
        if (self.output is None) == (ends == (None, None, None)) or (self.output is None and None in ends):
            raise DomainError(f"Coverage: give either an output of 0 and 1, or lower=, upper= and truth=, got {self}")
        if self.output is not None:
            _check_names(self, output=self.output)
        else:
            _check_names(self, lower=self.lower, upper=self.upper)
            _check_truth(self, self.truth)

    @property
    def inputs(self) -> tuple[str | float, ...]:
        """The columns, and numbers, that :meth:`compute` takes."""
        if self.output is not None:
            return (self.output,)
        return tuple(x for x in (self.lower, self.upper, self.truth) if x is not None)

    def compute(self, *columns: np.ndarray) -> tuple[float, float]:
        """Value and Monte Carlo standard error."""
        if self.output is not None:
            return _moments.share(self.label, self.output, columns[0])
        low, high, truth = columns
        return _moments.share(self.label, "", ((low <= truth) & (truth <= high)).astype(np.float64))

    def _words(self) -> str:
        return f"coverage {self.output if self.output is not None else f'{self.lower}..{self.upper}'}"


def _check_names(measure: Measure, **names: Any) -> None:
    where = type(measure).__name__
    for field, value in names.items():
        if not isinstance(value, str) or not value:
            raise DomainError(f"{where}: {field} must be the name of a column, got {value!r}")
    if measure.name is not None and (not isinstance(measure.name, str) or not measure.name):
        raise DomainError(f"{where}: name must be text or None, got {measure.name!r}")


def _check_truth(measure: Measure, truth: Any) -> None:
    fits = bool(truth) if isinstance(truth, str) else not isinstance(truth, bool) and isinstance(truth, Real)
    if not fits or (isinstance(truth, Real) and not math.isfinite(truth)):
        raise DomainError(
            f"{type(measure).__name__}: truth must be a finite number or the name of an output or axis, got {truth!r}"
        )


def _differences(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):  # infinity less infinity: NaN says so
        return x - truth
