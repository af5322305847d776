"""Any transforms of torch and Pyro as laws of weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform

from .. import validation
from ..equality import ByValue
from ..errors import DomainError, SerializationError, ShapeError
from ..networks import Layout
from .flows import WhitenedWeights, layer_slices


@dataclass(frozen=True)
class TransformedWeights(WhitenedWeights):
    r"""Weights that are any differentiable transforms of standard normal ones, layer by layer.

    .. math:: w_l = s_l \odot T_l(z_l), \qquad z_l \sim N(0, I),

    with :math:`T_l` a transform of torch or Pyro, or several in turn, of the vector of a layer's weights and biases. As
    in :class:`FlowWeights` the coordinates theta are z, so neither an inverse nor a determinant is needed.

    The transforms are the user's objects, trained before or not, and are not changed; two priors are equal where they
    hold the same objects. :func:`probnn.match_prior` tunes the scales and, of transforms that are torch modules (those
    of Pyro), the parameters with ``requires_grad``: a match holds the values it found as `parameters`. A prior like
    this cannot be saved, because a file never has code; :class:`FlowWeights` can.

    Args:
        weight_scale: s of the weights: a number, a tensor, one value a layer, or a tensor of one value a weight.
        bias_scale: s of the biases, likewise.
        scaling: ``"fan_in"`` divides the weights' scale by the square root of the number of inputs of the unit;
            ``"none"`` does not.
        transforms: One entry a layer: a `torch.distributions.Transform` of vectors (or of numbers, taken entry by
            entry) that keeps their length and treats each on its own, a sequence of them, applied in order, or None
            for none. All moments of what they give are taken to be finite.
        parameters: Values of the modules' parameters with ``requires_grad`` instead of their own, as one vector in the
            order of layers, transforms and their names; None: their own.

    Raises:
        DomainError: A scale is not positive, an entry is no such transform, or there is not one entry a layer.
        ShapeError: A transform does not keep the length, or `parameters` is not as long as the modules' together.

    Example:
        >>> import torch, probnn
        >>> from pyro.distributions import transforms
        >>> net = probnn.MLP(input_dim=2, hidden=(5,))  # 15 and 6 weights and biases
        >>> flows = [transforms.affine_coupling(15, hidden_dims=[8]), None]
        >>> prior = TransformedWeights(transforms=flows)
        >>> theta = prior.sample(net.layout, (4,))
        >>> tuple(prior.weights(net.layout, theta).shape), prior.hyperparameters(net.layout)["parameters"][0].shape
        ((4, 21), torch.Size([208]))
    """

    transforms: Sequence[Any] = field(default=(), kw_only=True, compare=False)
    parameters: Tensor | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        where = f"priors.{type(self).__name__}"
        if not isinstance(self.transforms, (tuple, list)) or not self.transforms:
            raise DomainError(
                f"{where}: transforms must be a sequence of one entry a layer, got {type(self.transforms).__name__}"
                + ("" if self.transforms else " without entries")
            )
        entries = tuple(
            () if x is None else tuple(x) if isinstance(x, (tuple, list)) else (x,) for x in self.transforms
        )
        for i, transform in ((i, t) for i, entry in enumerate(entries) for t in entry):
            if not isinstance(transform, Transform) or transform.domain.event_dim > 1:
                raise DomainError(
                    f"{where}: transforms[{i}] must be transforms of vectors or of numbers, got {transform!r}"
                )
        object.__setattr__(self, "transforms", entries)
        if self.parameters is not None:
            parameters = self.parameters
            if not torch.is_tensor(parameters):  # numbers, as tuning leaves them
                parameters = torch.tensor(parameters, dtype=torch.double)
            validation.tensor(where, "parameters", parameters)
            size = sum(p.numel() for p in self._own())
            if parameters.shape != (size,):
                raise ShapeError(f"{where}: parameters must have shape ({size},), got {tuple(parameters.shape)}")
            object.__setattr__(self, "parameters", parameters)

    def __eq__(self, other: object) -> bool:
        same = ByValue.__eq__(self, other)
        if same is NotImplemented or not same:
            return same
        return _identities(self.transforms) == _identities(other.transforms)  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((ByValue.__hash__(self), _identities(self.transforms)))

    def _config(self) -> dict[str, Any]:
        raise SerializationError(
            "save: priors.TransformedWeights cannot be saved, because its transforms are code; use priors.FlowWeights, "
            "which can, or save the modules' state_dict and make the prior again"
        )

    def hyperparameters(self, network: Layout, order: float = 0.0) -> dict[str, tuple[Tensor, float | None]]:
        """The scales, and the parameters of the transforms that are modules."""
        found, own = super().hyperparameters(network, order), self._own()
        if own:
            value = self.parameters
            if value is None:
                value = torch.cat([p.detach().reshape(-1).double().cpu() for p in own])
            found["parameters"] = value, None
        return found

    def weights(self, network: Layout, theta: Tensor) -> Tensor:
        """The network's weights of z ``... x P``: ``... x P``; differentiable in z, the scales and `parameters`."""
        where, layers = f"priors.{type(self).__name__}", layer_slices(network)
        if len(self.transforms) != len(layers):
            raise DomainError(
                f"{where}: transforms has {len(self.transforms)} entries but the network has {len(layers)} layers; "
                "give one for each, None where there is none"
            )
        parts, at = [], 0
        for i, (s, entry) in enumerate(zip(layers, self.transforms, strict=True)):
            part = theta[..., s]
            for transform in entry:
                moved, at = self._call(transform, part, at)
                if moved.shape != part.shape:
                    raise ShapeError(
                        f"{where}: transforms[{i}] must keep the {s.stop - s.start} weights and biases of the layer, "
                        f"but gives {tuple(moved.shape)} for {tuple(part.shape)}"
                    )
                if moved.dtype != part.dtype:
                    raise DomainError(
                        f"{where}: transforms[{i}] gives {moved.dtype} for {part.dtype}; make its tensors {part.dtype}"
                    )
                part = moved
            parts.append(part)
        return torch.cat(parts, -1) * self.scales(network, theta)

    def _call(self, transform: Any, x: Tensor, at: int) -> tuple[Tensor, int]:
        """The transform of x, and where in `parameters` those of the next one begin."""
        x = x.view_as(x)  # transforms remember the last value by its identity, whatever their parameters are by now
        with _unchanged(transform):
            if not isinstance(transform, nn.Module):
                return transform(x), at
            tensors = {name: v.detach() for name, v in (*transform.named_parameters(), *transform.named_buffers())}
            for name, own in _tunable(transform):
                if self.parameters is not None:
                    tensors[name] = self.parameters[at : at + own.numel()].reshape(own.shape)
                at += own.numel()
            tensors = {k: v.to(x) if v.is_floating_point() else v.to(x.device) for k, v in tensors.items()}
            return torch.func.functional_call(transform, tensors, (x,)), at

    def _own(self) -> list[Tensor]:
        """The parameters that can be tuned, in order."""
        modules = [t for entry in self.transforms for t in entry if isinstance(t, nn.Module)]
        return [value for module in modules for _, value in _tunable(module)]


def _tunable(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


def _identities(transforms: Sequence[Sequence[Any]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(id, entry)) for entry in transforms)


@contextlib.contextmanager
def _unchanged(transform: Any) -> Iterator[None]:
    """Put back what a transform remembers of its last call: it holds a graph, which cannot be copied."""
    parts = [transform, *getattr(transform, "parts", ())]
    if isinstance(transform, nn.Module):
        parts += transform.modules()
    before = [{k: v for k, v in vars(part).items() if k.startswith("_cache")} for part in parts]
    try:
        yield
    finally:
        for part, values in zip(parts, before, strict=True):
            vars(part).update(values)
