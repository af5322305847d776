"""Random spaces whose constraints some setting satisfies."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import reject
from hypothesis import strategies as st

from probnn.errors import DomainError
from probnn.optimization import Categorical, Fixed, Integer, Real, Space
from probnn.optimization.parameters import Parameter

PARAMETERS: list[Parameter] = [
    Real(0, 1),
    Real(-2.5, 4),
    Real(8, 9.8, step=0.1),
    Real(0, 1, step=0.05),
    Real(-1, 1, step=0.3),
    Real(1e-4, 1e-1, log=True),
    Real(0.5, 64, log=True, step=0.5),
    Integer(0, 7),
    Integer(-30, 400, step=7),
    Integer(1, 1024, log=True),
    Integer(0, 10**9),
    Categorical(["a", "b"]),
    Categorical([1, 10, 100.5], ordered=True),
    Categorical([f"c{i}" for i in range(20)]),
    Fixed(2.5),
]


def decimal(x: float) -> Decimal:
    return Decimal(repr(x))


@st.composite
def spaces(draw: st.DrawFn) -> tuple[Space, dict[str, Any]]:
    """A space of up to six parameters and three constraints, and a setting that satisfies them."""
    kinds = draw(st.lists(st.sampled_from(PARAMETERS), min_size=1, max_size=6))
    parameters = {f"p{i}": kind for i, kind in enumerate(kinds)}
    if all(isinstance(p, Fixed) for p in kinds):
        parameters["x"] = Real(0, 1)
    inside = {}
    for name, p in parameters.items():
        share = draw(st.sampled_from([0.0, 0.125, 0.3, 0.5, 0.77, 1.0]))
        at = round(share * (len(p.choices) - 1)) if isinstance(p, Categorical) and not p.ordered else share
        inside[name] = p.nearest(at)
    numbers = [n for n, p in parameters.items() if not isinstance(p, (Categorical, Fixed))]
    constraints = []
    zeros = [n for n in numbers if parameters[n].complaint(0) is None]
    if len(zeros) > 1 and draw(st.booleans()):
        count = draw(st.integers(1, len(zeros) - 1))
        for name in zeros[count:]:
            inside[name] = type(inside[name])(0)
        constraints.append(f"at most {count} of {', '.join(zeros)}")
    for _ in range(draw(st.integers(0, 3)) if numbers else 0):
        fixed = [n for n, p in parameters.items() if isinstance(p, Fixed)]
        free = draw(st.lists(st.sampled_from(numbers), min_size=1, max_size=4, unique=True))
        names = [*free, *draw(st.lists(st.sampled_from(fixed), max_size=1, unique=True) if fixed else st.just([]))]
        factors = [draw(st.sampled_from(["1", "2", "0.5", "-1", "-0.25", "3"])) for _ in names]
        total = sum((Decimal(f) * decimal(inside[n]) for f, n in zip(factors, names, strict=True)), Decimal(0))
        left = " + ".join(f"{f} * {n}" for f, n in zip(factors, names, strict=True))
        relation = draw(st.sampled_from(["<=", ">=", "="]))
        if relation == "=" and any(getattr(parameters[n], "log", False) for n in free):
            relation = "<="
        slack = Decimal(0) if relation == "=" else Decimal(draw(st.sampled_from(["0", "0.01", "1", "20"])))
        constraints.append(f"{left} {relation} {total + slack if relation == '<=' else total - slack}")
    try:
        return Space(**parameters, constraints=constraints), inside
    except DomainError as error:
        if "together leave only equality" not in str(error) and "in another unit" not in str(error):
            raise
        reject()
