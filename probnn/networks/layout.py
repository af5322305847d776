"""What the coordinates of a flat parameter vector are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import DomainError, ShapeError


@dataclass(frozen=True)
class Block:
    """One named array within a flat vector.

    Args:
        name: Unique name within the layout, such as ``layers.0.weight``.
        shape: Shape of the array; ``()`` for a scalar.
        fan_in: Number of inputs of the unit the block belongs to (for fan-in scaling).
        exchangeable: Axes along which the prior does not change when entries are permuted
            together with the rest of the network: hidden units. A mass matrix is pooled over them.
        role: ``"weight"``, ``"bias"`` or ``"scale"``; weight priors treat them differently.
    """

    name: str
    shape: tuple[int, ...]
    fan_in: int = 1
    exchangeable: tuple[int, ...] = ()
    role: str = "weight"

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The blocks of a flat vector, in order.

    Args:
        blocks: The blocks; entry `i` of a block of shape `s` is read in row-major order.

    Example:
        >>> from probnn.networks import Block, Layout
        >>> layout = Layout((Block("weight", (3, 2), fan_in=2), Block("bias", (3,), role="bias")))
        >>> layout.size, {k: tuple(v.shape) for k, v in layout.unflatten(torch.zeros(5, 9)).items()}
        (9, {'weight': (5, 3, 2), 'bias': (5, 3)})
    """

    blocks: tuple[Block, ...]
    size: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        object.__setattr__(self, "size", sum(block.size for block in self.blocks))

    def slices(self) -> Iterator[tuple[Block, slice]]:
        """Each block with the slice of the flat vector it occupies."""
        at = 0
        for block in self.blocks:
            yield block, slice(at, at + block.size)
            at += block.size

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Split ``... x size`` into named arrays ``... x shape`` (views)."""
        if flat.shape[-1] != self.size:
            raise ShapeError(f"Layout.unflatten: expected (..., {self.size}), got {tuple(flat.shape)}")
        return {b.name: flat[..., s].reshape(*flat.shape[:-1], *b.shape) for b, s in self.slices()}

    def flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        """The inverse of :meth:`unflatten`; every block must be there, and nothing else."""
        names = [block.name for block in self.blocks]
        if set(named) != set(names):
            missing, unknown = [n for n in names if n not in named], [n for n in named if n not in names]
            raise DomainError(
                f"Layout.flatten: needs exactly the blocks {names}; missing are {missing}, unknown are {unknown}"
            )
        parts = []
        for block in self.blocks:
            value = named[block.name]
            lead = value.shape[: value.ndim - len(block.shape)]
            if value.shape[len(lead) :] != block.shape:
                raise ShapeError(f"Layout.flatten: {block.name} must end in {block.shape}, got {tuple(value.shape)}")
            parts.append(value.reshape(*lead, block.size))
        return torch.cat(parts, -1)

    def pool(self, values: Tensor) -> Tensor:
        """Average ``... x size`` over the exchangeable axes of every block, keeping the shape."""
        arrays = self.unflatten(values)
        for block in self.blocks:
            if block.exchangeable:
                array, axes = arrays[block.name], [a - len(block.shape) for a in block.exchangeable]
                arrays[block.name] = array.mean(axes, keepdim=True).expand_as(array)
        return self.flatten(arrays)

    def expand(self, per_block: Tensor) -> Tensor:
        """Repeat one value a block, ``... x len(blocks)``, to one a coordinate, ``... x size``."""
        # By concatenation: repeat_interleave takes four times as long where there are many chains.
        parts = zip(per_block.split(1, -1), self.blocks, strict=True)
        return torch.cat([value.expand(*value.shape[:-1], block.size) for value, block in parts], -1)
