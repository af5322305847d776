"""Mixing measures and gates as tables of plain values, as files of studies have them, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .. import moe
from ..errors import DomainError, UnsupportedError
from ._code import own

GATES: dict[str, type[moe.Gate]] = {
    "activation": moe.ActivationGate,
    "gaussian": moe.GaussianGate,
    "laplace": moe.LaplaceGate,
    "sigmoid": moe.SigmoidGate,
    "softmax": moe.SoftmaxGate,
    "temperature": moe.TemperatureGate,
    "topk": moe.TopKGate,
}
_NUMBERS = ("gate_bias", "gate_weight", "intercept", "coef", "variance", "temperature", "gate_covariance")


def record(value: Any, what: str) -> Any:
    """A setting as JSON can hold it: numbers, strings and frozen dataclasses of such.

    Raises:
        UnsupportedError: It is none of these, so that nothing says when it has changed.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [record(item, what) for item in value]
    if isinstance(value, Mapping):
        return {str(key): record(item, what) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not own(type(value)):
        fields = {f.name: record(getattr(value, f.name), what) for f in dataclasses.fields(value) if f.init}
        return {"class": type(value).__name__, **fields}
    raise UnsupportedError(
        f"studies: {what} has a {type(value).__name__}, {value!r}, which a study cannot record; use numbers, strings "
        "and the library's own gates and experts (the code of others is not among what identifies a row)"
    )


def record_of_measure(measure: moe.MixingMeasure) -> dict[str, Any]:
    """Everything that a measure is, as plain values."""
    numbers = {name: None if (x := getattr(measure, name)) is None else x.tolist() for name in _NUMBERS}
    return {"gate": record(measure.gate, "the truth's gate"), **numbers}


def gate_from(where: str, value: Any) -> moe.Gate:
    """A gate of its name, or of a table with `kind` and its settings; the text "none" stands for None.

    Raises:
        DomainError: There is no such gate, or it has no such setting.
    """
    settings = dict(value) if isinstance(value, Mapping) else {"kind": value}
    kind = settings.pop("kind", None)
    if kind not in GATES:
        raise DomainError(
            f"{where}: gate must be one of {', '.join(GATES)}, or a table with such a kind and its settings; got "
            f"{value!r}"
        )
    names = [f.name for f in dataclasses.fields(GATES[kind]) if f.init]
    if unknown := sorted(settings.keys() - set(names)):
        raise DomainError(
            f"{where}: the settings of a {kind} gate are {', '.join(names) or 'none'}, got {', '.join(unknown)}"
        )
    return GATES[kind](**{name: None if x == "none" else x for name, x in settings.items()})


def measure_from(where: str, table: Any) -> moe.MixingMeasure:
    """A measure of a table with its numbers and its gate.

    Raises:
        DomainError: Entries are missing or unknown.
    """
    if not isinstance(table, Mapping):
        raise DomainError(f"{where}: the truth must be a table of a mixing measure's parameters, got {table!r}")
    needed = {"gate_bias", "gate_weight", "intercept", "coef"}
    if odd := sorted((needed - table.keys()) | (table.keys() - {*_NUMBERS, "gate"})):
        raise DomainError(
            f"{where}: the truth's parameters are {', '.join(_NUMBERS)} and gate, of which {', '.join(sorted(needed))} "
            f"must be there; missing or unknown: {', '.join(odd)}"
        )
    given = {"variance": None, **table}
    gate = gate_from(where, given.pop("gate", "softmax"))
    return moe.MixingMeasure(**given, gate=gate)
