"""Any torch module as a network."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import random as rnd
from .. import validation
from ..errors import DomainError, SerializationError, ShapeError
from .base import Network
from .layout import Block, Layout


@dataclass(frozen=True, eq=False)
class ModuleNetwork(Network):
    """A user's `torch.nn.Module` as a function of one flat parameter vector.

    The module is copied and put into evaluation mode; its buffers stay as they are and only
    parameters with ``requires_grad`` are random. It must map rows ``n x d`` to ``n x c``, each row
    on its own. Draws are evaluated through `torch.func.vmap`.

    Args:
        module: The module.
        input_dim: Number of inputs d.
        output_dim: Number of channels c.

    Raises:
        DomainError: The module is no module, has no parameters to infer, or does not treat each row on its own
            (tried at one set of weights).
        ShapeError: It does not map ``3 x d`` to ``3 x c``.

    Example:
        >>> import torch
        >>> net = ModuleNetwork(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ELU(), torch.nn.Linear(4, 1)),
        ...                     input_dim=2, output_dim=1)
        >>> net.num_parameters, tuple(net(torch.zeros(6, 17), torch.zeros(3, 2)).shape)
        (17, (6, 3, 1))
    """

    module: nn.Module
    input_dim: int
    output_dim: int = 1

    def __post_init__(self) -> None:
        for name in ("input_dim", "output_dim"):
            object.__setattr__(self, name, validation.positive_int("ModuleNetwork", name, getattr(self, name)))
        if not isinstance(self.module, nn.Module):
            raise DomainError(f"ModuleNetwork: module must be a torch.nn.Module, got a {type(self.module).__name__}")
        module = copy.deepcopy(self.module).eval()
        named = {k: v for k, v in module.named_parameters() if v.requires_grad}
        if not named:
            raise DomainError("ModuleNetwork: the module has no parameter with requires_grad, so nothing to infer")
        object.__setattr__(self, "_layout", Layout(tuple(_block(k, v, named) for k, v in named.items())))
        object.__setattr__(self, "module", module)
        generator = rnd.generator_from(0)
        with torch.no_grad(), rnd.forked(generator):  # a module may draw from the global stream
            self._check_rows(module, named, generator)

    def _check_rows(self, module: nn.Module, named: dict[str, nn.Parameter], generator: torch.Generator) -> None:
        """Refuse a module that does not map rows to rows, or whose value at a row depends on the others."""
        rule = f"ModuleNetwork: the module must map (3, {self.input_dim}) to (3, {self.output_dim})"
        like = next(iter(named.values()))
        X = 2 * rnd.uniform((3, self.input_dim), generator=generator, like=like) - 1
        # Not at the module's own weights: a last layer that starts at zero would hide everything before it.
        moved = {k: p + 0.5 * rnd.normal(p.shape, generator=generator, like=p) for k, p in named.items()}
        try:
            whole = torch.func.functional_call(module, moved, (X,))
        except Exception as error:  # whatever a module of somebody else's raises
            raise ShapeError(f"{rule}, it raises {type(error).__name__}: {error}; set input_dim to match it") from error
        if not torch.is_tensor(whole) or tuple(whole.shape) != (3, self.output_dim):
            got = tuple(whole.shape) if torch.is_tensor(whole) else f"a {type(whole).__name__}"
            raise ShapeError(f"{rule}, it gives {got}; set input_dim and output_dim to match it")
        try:
            alone = torch.cat([torch.func.functional_call(module, moved, (x,)) for x in X.split(1)])
        except Exception as error:
            raise DomainError(
                f"ModuleNetwork: the module must treat each row on its own, but cannot take a single one "
                f"({type(error).__name__}: {error})"
            ) from error
        tolerance = torch.finfo(whole.dtype).eps ** 0.5
        scale = whole.nan_to_num().abs().max().item()
        if not torch.allclose(whole, alone, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            raise DomainError(
                "ModuleNetwork: the module must treat each row on its own, but its value at a row depends on the other "
                "rows, or changes from call to call; leave out what works across rows, such as batch normalisation "
                "without running statistics or a softmax over dimension 0"
            )

    @property
    def layout(self) -> Layout:
        """One block a parameter, under the module's own names."""
        return self._layout  # type: ignore[attr-defined]

    @property
    def _width(self) -> int:
        return max(self.output_dim, *(b.shape[0] for b in self.layout.blocks if b.shape))

    def _stacked(self, params: Tensor, X: Tensor) -> Tensor:
        if params.shape[0] == 0:
            return params.new_empty(0, X.shape[-2], self.output_dim)
        buffers = {k: b.to(params.dtype) if b.is_floating_point() else b for k, b in self.module.named_buffers()}
        fixed = {k: p.detach().to(params.dtype) for k, p in self.module.named_parameters()}

        def one(flat: Tensor, x: Tensor) -> Tensor:
            named = {**fixed, **buffers, **self.layout.unflatten(flat)}
            return torch.func.functional_call(self.module, named, (x,))

        shared = X.shape[0] == 1
        return torch.func.vmap(one, in_dims=(0, None if shared else 0))(params, X[0] if shared else X)

    def _config(self) -> dict[str, Any]:
        return {"input_dim": self.input_dim, "output_dim": self.output_dim, "state": dict(self.module.state_dict())}

    @classmethod
    def _from_config(cls, config: dict[str, Any], *, network: Any = None) -> ModuleNetwork:
        module = network.module if isinstance(network, ModuleNetwork) else network
        if not isinstance(module, nn.Module):
            raise SerializationError(
                "probnn.load: the file holds the tensors of a ModuleNetwork but not its code; "
                f"give the module back with probnn.load(path, network=module), got network={network!r}"
            )
        module = copy.deepcopy(module)
        try:
            module.load_state_dict(config["state"])
        except RuntimeError as error:
            raise SerializationError(f"probnn.load: network= does not fit the saved tensors: {error}") from error
        return cls(module, config["input_dim"], config["output_dim"])


def _block(name: str, value: Tensor, named: dict[str, nn.Parameter]) -> Block:
    bias = name.rpartition(".")[2].startswith("bias")
    sibling = named.get(name[: -len("bias")] + "weight") if name.endswith("bias") else None
    shape = value.shape if sibling is None else sibling.shape
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
    return Block(name, tuple(value.shape), fan_in, (), "bias" if bias else "weight")
