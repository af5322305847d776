"""Outcomes imagined under a likelihood whose noise is not normal."""

from __future__ import annotations

from typing import TypeGuard

import torch
from botorch.sampling.base import MCSampler
from torch import Tensor

from ..likelihoods import StudentT
from ..predictive import DrawsPosterior
from ..process import EmpiricalProcess, StochasticProcess


def is_student_t(process: StochasticProcess) -> TypeGuard[EmpiricalProcess]:
    """Whether the process is made of draws with Student-t noise."""
    return isinstance(process, EmpiricalProcess) and isinstance(process.likelihood, StudentT)


def imagined(process: EmpiricalProcess, X: Tensor, sampler: MCSampler, salt: int) -> Tensor:
    """Outcomes ``sample_shape x ... x n x m`` of the draws that the sampler chooses; differentiable in X.

    The sampler's base samples choose the draws and are the noise, as for normal outcomes; normal noise z becomes
    the Student-t noise of the same probability.

    Args:
        process: Draws of the function and of the parameters of a Student-t likelihood.
        X: Inputs ``... x n x d`` of the process.
        sampler: BoTorch's.
        salt: The model's, for a `DrawsSampler`.
    """
    likelihood: StudentT = process.likelihood  # type: ignore[assignment]
    f, psi = process._channels(X)
    scale = likelihood.log_scale(psi).exp().expand(f.shape)

    def take(values: Tensor, noise: float) -> Tensor:
        # Noise of zero, not None: the same base samples serve all three.
        return sampler(DrawsPosterior(values, process.log_weights, values.new_tensor(noise), salt=salt))

    z = take(torch.zeros_like(f), 1.0)
    return take(f, 0.0) + take(scale, 0.0) * likelihood.from_normal(z)
