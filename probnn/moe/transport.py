"""Samples of normal mixtures as smooth functions of their parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from ..predictive.mixture import mixture_quantile


def mixture_transport(eps: Tensor, log_weights: Tensor, means: Tensor, stds: Tensor) -> Tensor:
    r"""Outcomes of normal mixtures as a smooth function of standard normals and of the parameters.

    Outcome l of a point is the quantile, at :math:`\Phi(\varepsilon_l)`, of its law given the outcomes before it
    (Rosenblatt 1952), itself a mixture, with the probabilities of the components given those outcomes. Gradients are
    those of the implicit function (Figurnov, Mohamed & Mnih 2018, arXiv 1805.08498), so the gradient of an average of
    samples is an unbiased one of the expectation, probabilities included: choosing a component at random and adding
    its noise would lose those.

    Args:
        eps: Standard normals ``... x q x m``.
        log_weights: Log-weights up to a constant, ``... x q x K``.
        means: Means of the components, ``... x q x K x m``.
        stds: Positive standard deviations, like `means`.
    """
    tiny, near_one = torch.finfo(eps.dtype).tiny, 1 - torch.finfo(eps.dtype).eps / 2
    levels = torch.special.ndtr(eps).clamp(tiny, near_one)
    outcomes: list[Tensor] = []
    for j in range(means.shape[-1]):
        loc, scale = (x[..., j].mT.unsqueeze(-1) for x in (means, stds))  # ... K q 1
        weights = log_weights.softmax(-1).mT.unsqueeze(-1)
        y = mixture_quantile(levels[..., None, :, j : j + 1], weights, loc, scale).squeeze(-3)  # ... q 1
        outcomes.append(y)
        if j + 1 < means.shape[-1]:
            log_weights = log_weights - 0.5 * ((y - means[..., j]) / stds[..., j]).square() - stds[..., j].log()
    return torch.cat(outcomes, -1)
