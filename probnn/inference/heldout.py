"""What each draw of a network says about a row it has not seen, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..process import EmpiricalProcess
from .collapsed import CollapsedTarget

_NUMBERS = 4_000_000  # of the matrices worked on at a time


def held_out_moments(
    process: EmpiricalProcess, X: Tensor, Y: Tensor, noise_variance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of :math:`y_i` given all other rows and everything in a draw but the last layer.

    Given hidden units, scales and noise the outcomes are jointly normal, :math:`y \sim N(0, A)` (see
    :class:`CollapsedTarget`), so that

    .. math:: E(y_i \mid y_{-i}) = y_i - \alpha_i / (A^{-1})_{ii}, \quad
       \mathrm{Var}(y_i \mid y_{-i}) = 1 / (A^{-1})_{ii}, \quad \alpha = A^{-1} y

    (Rasmussen and Williams, 2006, equations 5.10 to 5.12). The draws themselves have seen row i; their importance
    weights without it are :math:`1 / p(y_i \mid y_{-i})` (integrated importance sampling: Vehtari, Mononen, Tolvanen,
    Sivula and Winther, 2016, arXiv:1412.7461), much tamer than those of draws with their last layer.

    Args:
        process: Draws of equal weight of the posterior of a network, fitted to these very data.
        X, Y: The data, ``n x d`` and ``n x m``.
        noise_variance: Known noise variances ``n x m``, if the fit had them.

    Returns:
        Means and variances, noise included, ``S x n x m``.

    Raises:
        UnsupportedError: The prior is no network with a Gaussian last layer, or the likelihood is not Gaussian.

    Example:
        >>> import torch, probnn
        >>> X = torch.linspace(-1, 1, 6, dtype=torch.double).unsqueeze(-1)
        >>> prior = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=(5,)), probnn.priors.NormalWeights())
        >>> posterior = probnn.HMC(num_chains=4, num_warmup=20, num_samples=5).fit(
        ...     prior.to(dtype=torch.double), probnn.likelihoods.Gaussian(noise=0.5), X, X.sin(), seed=0)
        >>> mean, variance = held_out_moments(posterior, X, X.sin())
        >>> tuple(mean.shape), bool((variance > 0.5**2).all())
        ((20, 6, 1), True)
    """
    where = "held_out_moments"
    if not isinstance(process, EmpiricalProcess) or process.prior is None or process.likelihood is None:
        raise UnsupportedError(f"{where}: needs draws of a posterior, as probnn.HMC gives them")
    if getattr(process.info, "temperature", 1.0) != 1:
        raise UnsupportedError(f"{where}: the draws are of a tempered posterior; fit with temperature=1")
    if process.log_weights is not None:
        raise UnsupportedError(f"{where}: the draws are weighted; resample them first, process.thin(num_draws)")
    target = CollapsedTarget(process.prior, process.likelihood, X, Y, noise_variance)  # type: ignore[arg-type]
    means, variances = [], []
    with torch.no_grad():
        theta, psi = target.restrict(process.theta.flatten(0, 1)), process.psi.flatten(0, 1)
        for some in torch.arange(len(theta), device=theta.device).split(max(1, _NUMBERS // len(X) ** 2)):
            phi, _ = target._features(theta[some])
            noise = target._variance(psi[some]).expand(len(some), len(X), Y.shape[-1])
            A = (phi @ phi.mT).unsqueeze(-3) + torch.diag_embed(noise.mT)  # S x m x n x n
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(A))
            precision = inverse.diagonal(dim1=-2, dim2=-1)
            alpha = (inverse @ Y.mT.unsqueeze(-1)).squeeze(-1)
            means.append(Y - (alpha / precision).mT)
            variances.append((1 / precision).mT)
    return torch.cat(means), torch.cat(variances)
