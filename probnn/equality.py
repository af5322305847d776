"""Equality by value of frozen dataclasses that hold tensors."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch


class ByValue:
    """Equal where type and fields are, a tensor where dtype, device, shape and every entry are; hashed accordingly.

    The methods that `dataclass` writes fail on tensors of several entries. It leaves those alone that a class has of
    its own, so every subclass is given these before its decorator sees it.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__eq__" not in cls.__dict__:
            cls.__eq__, cls.__hash__ = ByValue.__eq__, ByValue.__hash__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self is other or _key(self) == _key(other)

    def __hash__(self) -> int:
        return hash(_key(self))


def _key(x: Any) -> Any:
    """Something that compares and hashes as `x` is to."""
    if isinstance(x, ByValue):
        return (type(x), *(_key(getattr(x, f.name)) for f in fields(x) if f.compare))  # type: ignore[arg-type]
    if torch.is_tensor(x):
        return (torch.Tensor, x.dtype, x.device, x.shape, *x.flatten().tolist())
    return tuple(map(_key, x)) if isinstance(x, tuple) else x
