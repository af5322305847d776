"""Exponents that theory has, by loss, and where groups differ in it by loss and group."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from ..errors import DomainError

Theory = Mapping[str, float | Mapping[str, float]]

# A slope whose standard error is smaller is that of a loss which does not change: rounding is its only spread.
ROUNDING = 1e-9


def checked(where: str, theory: Theory | None, losses: tuple[str, ...], groups: list[str]) -> dict[str, Any]:
    """A copy of a theory, with floats.

    Raises:
        DomainError: It is about losses or groups that are not there, or an exponent is no finite number.
    """
    if theory is None:
        return {}
    if not isinstance(theory, Mapping) or not theory or any(name not in losses for name in theory):
        raise DomainError(f"{where}: theory must map losses ({', '.join(losses)}) to exponents, got {theory!r}")
    found: dict[str, Any] = {}
    for name, value in theory.items():
        if isinstance(value, Mapping):
            unknown = [group for group in value if group not in groups]
            if unknown:
                raise DomainError(
                    f"{where}: theory of {name!r} must be about {', '.join(groups)}, got {', '.join(map(str, unknown))}"
                )
            found[name] = {group: _exponent(where, f"{name!r} of {group}", v) for group, v in value.items()}
        else:
            found[name] = _exponent(where, repr(name), value)
    return found


def _exponent(where: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not np.isfinite(float(value)):
        raise DomainError(f"{where}: the exponent of {name} must be a finite number, got {value!r}")
    return float(value)


def group_name(group: Mapping[str, Any]) -> str:
    """How a theory calls a group: the values of its axes."""
    return ", ".join(str(value) for value in group.values())


def columns(
    theory: Mapping[str, Any], loss: str, group: Mapping[str, Any], rate: Mapping[str, Any]
) -> dict[str, float]:
    """The columns ``theory`` and ``z`` of a rate; NaN where there is none."""
    aim = theory.get(loss, np.nan)
    if isinstance(aim, Mapping):
        aim = aim.get(group_name(group), np.nan)
    return {"theory": aim, "z": (rate["slope"] - aim) / rate["se"] if rate["se"] > ROUNDING else np.nan}
