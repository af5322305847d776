"""Function draws of a model for BoTorch's pathwise tools, such as Thompson sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from botorch.sampling.pathwise.posterior_samplers import DrawMatheronPaths
from torch import Tensor, nn

from ..errors import ShapeError
from ..process import EmpiricalProcess
from .model import ProcessModel


class ProcessPaths(nn.Module):
    """Functions drawn from a :class:`ProcessModel`, in the units of the data, the same at every call.

    What BoTorch's `draw_matheron_paths` returns for one, and in the layout BoTorch expects: inputs
    ``... x n x d`` give ``... x n`` for one outcome, and ``... x 1 x n x d`` give ``... x m x n`` for several, where
    the leading dimensions broadcast with `sample_shape`: each path meets inputs of its own.

    Args:
        model: The model.
        sample_shape: How many functions, as a shape. Randomness is torch's global stream, as in BoTorch.

    Raises:
        UnsupportedError: The process has no function draws, or the model is a batch of models.

    Example:
        >>> import torch, probnn
        >>> from botorch.models.deterministic import MatheronPathModel
        >>> net = probnn.MLP(input_dim=2, hidden=(8,))
        >>> model = probnn.ProcessModel(probnn.BayesianNetwork(net, probnn.priors.NormalWeights()))
        >>> tuple(MatheronPathModel(model, torch.Size([5]))(torch.zeros(7, 2)).shape)
        (5, 7, 1)
    """

    def __init__(self, model: ProcessModel, sample_shape: torch.Size):
        super().__init__()
        self.model, self.sample_shape = model, torch.Size(sample_shape)
        process = model.process
        stored = isinstance(process, EmpiricalProcess)
        self._evaluate = (_stored_draws if stored else _separate_functions)(process, self.sample_shape)

    def forward(self, X: Tensor) -> Tensor:
        """The values of every path at its own X."""
        several = self.model.num_outputs > 1
        if several and X.ndim > 2:
            if X.shape[-3] != 1:
                raise ShapeError(f"ProcessPaths: X must be ... x 1 x n x d for several outcomes, got {tuple(X.shape)}")
            X = X.squeeze(-3)
        inside = self.model._transformed("paths", X)
        try:
            lead = torch.broadcast_shapes(self.sample_shape, inside.shape[:-2])
        except RuntimeError:
            raise ShapeError(
                f"ProcessPaths: the leading dimensions of X must broadcast with the sample shape "
                f"{tuple(self.sample_shape)}, got {tuple(X.shape)}"
            ) from None
        f, psi = self._evaluate(inside, lead)
        likelihood = self.model.process.likelihood
        values = f if likelihood is None else likelihood.moments(f, psi)[0]
        if hasattr(self.model, "outcome_transform"):
            values, _ = self.model.outcome_transform.untransform(values, X=inside)
        if self.model._outputs is not None:
            values = values[..., list(self.model._outputs)]
        return values.mT if several else values.squeeze(-1)

    def set_ensemble_as_batch(self, ensemble_as_batch: bool) -> None:
        """For BoTorch; the draws are no ensemble dimension of the model, so there is nothing to set."""


Evaluate = Callable[[Tensor, torch.Size], tuple[Tensor, Tensor]]


def _stored_draws(process: Any, shape: torch.Size) -> Evaluate:
    theta, psi = process._sample_joint(shape, None)
    return lambda X, lead: (process._apply(theta, X), psi.unsqueeze(-2))


def _separate_functions(process: Any, shape: torch.Size) -> Evaluate:
    """One call of `sample_functions` for each path, which then sees only the inputs meant for it."""
    functions = [process.sample_functions() for _ in range(math.prod(shape))]
    psi = process._no_psi(torch.empty(0, dtype=process.dtype, device=process.device), 1)

    def evaluate(X: Tensor, lead: torch.Size) -> tuple[Tensor, Tensor]:
        batch = lead[: len(lead) - len(shape)]
        each = X.expand(*lead, *X.shape[-2:]).reshape(*batch, len(functions), *X.shape[-2:])
        f = torch.stack([g(each[..., i, :, :]) for i, g in enumerate(functions)], -3)
        return f.reshape(*lead, *f.shape[-2:]), psi

    return evaluate


@DrawMatheronPaths.register(ProcessModel)
def _draw_paths(
    model: ProcessModel, *, sample_shape: torch.Size, prior_sampler: Any = None, update_strategy: Any = None
) -> ProcessPaths:
    return ProcessPaths(model, sample_shape)
