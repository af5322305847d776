"""Second moments of networks in closed form: the Gaussian process a wide network tends to."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import random as rnd
from .. import validation
from ..errors import DomainError, UnsupportedError
from ..networks import MLP, Layout, Network
from ..process import BayesianNetwork
from .duals import dual_gram
from .random_scales import RandomScales
from .weights import NormalWeights, ScaledWeights, WeightPrior

_BOUNDED = ("tanh", "erf", "sin")  # activations
LAST = 2  # blocks of the last layer: its weights and biases


def wide_covariance(process: BayesianNetwork, X: Tensor, *, num_scales: int = 128, seed: int = 0) -> Tensor:
    r"""The second moments :math:`E[f(x) f(x')]` of a multilayer perceptron whose hidden layers are wide.

    With variances :math:`v_l` of the weights (fan-in scaling included) and :math:`c_l` of the biases,

    .. math::
        K_0(x, x') = c_0 + \sum_i v_{0} x_i x_i', \qquad
        K_{l}(x, x') = c_l + \sum_j v_{l}\, F\big(K_{l-1}(x, x), K_{l-1}(x, x'), K_{l-1}(x', x')\big)

    with the dual activation F of :func:`dual_activation` (Neal 1996; Lee et al. 2018, arXiv 1711.00165). With no or one
    hidden layer the network has exactly these moments at any width; with more, up to terms of order 1 / width.
    Under scales of one value a weight every unit has a covariance of its own. Under random scales
    (:class:`HierarchicalWeights`, :class:`InverseGammaWeights`) the last layer's count by their mean squares, in closed
    form, and over those of the hidden layers the moments are averaged at scrambled Sobol points (Owen 1998), through
    the inverse of their distribution function; of any other prior with a method ``sigma`` over draws of all scales.

    Args:
        process: A :class:`probnn.BayesianNetwork` of an :class:`probnn.MLP` with normal weights.
        X: Inputs ``n x d``.
        num_scales: Points at which random scales of hidden layers are taken; powers of two are best.
        seed: Seed of these points: the same seed makes a smooth function of the hyper-parameters.

    Returns:
        The moments of each channel, ``c x n x n``, in float64; differentiable in X and in the hyper-parameters of the
        weights.

    Raises:
        ShapeError, DomainError, NonFiniteError: X does not fit the process, or the moments are infinite.
        UnsupportedError: The network is no MLP, or its weights are not normal given their scales.

    Example:
        >>> import torch, probnn
        >>> net = probnn.MLP(input_dim=1, hidden=(1000,), activation="relu")
        >>> process = probnn.BayesianNetwork(net, probnn.priors.NormalWeights(bias_scale=0.5), dtype=torch.double)
        >>> K = probnn.priors.wide_covariance(process, torch.ones(1, 1).double())
        >>> round(K.item(), 6)  # 0.25 + (1 + 0.25) / 2
        0.875
    """
    where = "wide_covariance"
    check_normal(where, process)
    validation.inputs(where, X, process.input_dim, like=process, batched=False)
    validation.positive_int(where, "num_scales", num_scales)
    rnd.check_seed(where, seed)
    return moments(process.network, process.weight_prior, X.double(), num_scales, seed)  # type: ignore[arg-type]


def check_normal(where: str, process: BayesianNetwork) -> None:
    """Refuse what has no moments in closed form."""
    if not isinstance(process, BayesianNetwork) or not isinstance(process.network, MLP):
        what = process.network if isinstance(process, BayesianNetwork) else process
        raise UnsupportedError(
            f"{where}: moments are known in closed form for a BayesianNetwork of an MLP, got a {type(what).__name__}"
        )
    prior = process.weight_prior
    if not isinstance(prior, NormalWeights) and not hasattr(prior, "sigma"):
        raise UnsupportedError(
            f"{where}: moments are known in closed form for normal weights with fixed or random scales, got "
            f"{type(prior).__name__}"
        )
    if function_order(process) <= 2:
        which = "the last layer's" if bounded(process.network) else "a"
        raise DomainError(
            f"{where}: {type(prior).__name__} has scales of infinite variance, so the functions have no second "
            f"moments; {which} shape of inverse-gamma scales must be above 1, and half-Cauchy scales have none"
        )


def function_order(process: BayesianNetwork) -> float:
    """The order below which all moments of function values are finite.

    That of the weights, of all layers; where units are bounded and blocks have scales of their own, of the last layer.
    """
    prior, network = process.weight_prior, process.network
    if isinstance(prior, RandomScales) and bounded(network):
        return prior.moment_orders(network.layout)[-LAST:].min().item()
    return prior.moment_order


def bounded(network: Network) -> bool:
    """Whether all hidden units are known to be bounded."""
    return isinstance(network, MLP) and (network.activation in _BOUNDED or not network.hidden)


def moments(network: MLP, prior: WeightPrior, X: Tensor, num_scales: int, seed: int) -> Tensor:
    """The work of :func:`wide_covariance`, ``c x n x n`` in the dtype of X."""
    variances = _variances(network.layout, prior, X, num_scales, seed)
    K = X.new_empty(0)
    for layer, (weight, bias) in enumerate(variances):
        units = (network.input_dim, *network.hidden)[layer]
        if layer:
            inner = dual_gram(network.activation, K)  # scales x units x n x n, with one unit where all are alike
            inner = inner.expand(-1, units, -1, -1)
        else:
            inner = (X.mT.unsqueeze(-1) * X.mT.unsqueeze(-2)).unsqueeze(0)
        if weight.shape[-1] == 1:  # of all units alike
            K = weight.unsqueeze(-1) * inner.sum(-3, keepdim=True)
        else:
            K = torch.einsum("oi,iab->oab", weight[0], inner[0]).unsqueeze(0)
        K = K + bias[..., None, None]
    return K.mean(0).expand(network.output_dim, -1, -1)


def _variances(
    layout: Layout, prior: WeightPrior, like: Tensor, num_scales: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Of the weights ``S x out x in`` and the biases ``S x out`` of every layer; 1 where all units are alike."""
    blocks = layout.blocks
    if isinstance(prior, RandomScales):
        per_block = _spread_scales(layout, prior, like, num_scales, seed)
    elif hasattr(prior, "sigma"):
        theta = prior.sample(layout, (num_scales,), generator=rnd.generator_from(seed, device=like.device),
                             dtype=like.dtype, device=like.device)  # fmt: skip
        per_block = prior.sigma(layout, theta).square()  # scales x blocks
    elif isinstance(prior, ScaledWeights) and not _by_weight(layout, prior):
        per_block = prior.block_scales(layout, like).square().unsqueeze(0)
    else:
        if not isinstance(prior, ScaledWeights):
            raise UnsupportedError(f"wide_covariance: {type(prior).__name__} tells no scales of its weights")
        named = layout.unflatten(prior.scales(layout, like).square().unsqueeze(0))
        values = [named[block.name] for block in blocks]
        return list(zip(values[::2], values[1::2], strict=True))
    pairs = per_block.unbind(-1)
    return [(w[:, None, None], b[:, None]) for w, b in zip(pairs[::2], pairs[1::2], strict=True)]


def _spread_scales(layout: Layout, prior: RandomScales, like: Tensor, num_scales: int, seed: int) -> Tensor:
    """Squared scales ``S x blocks``: at points spread over their law, and of the last layer by their mean."""
    hidden = len(layout.blocks) - LAST
    last = prior.mean_squares(layout, like)[hidden:]
    if not hidden:
        return last.unsqueeze(0)
    p = torch.full((num_scales, hidden + LAST), 0.5, dtype=torch.double)
    engine = torch.quasirandom.SobolEngine(hidden, scramble=True, seed=seed)
    p[:, :hidden] = engine.draw(num_scales, dtype=torch.double) + 2.0**-31  # middles of its cells: never zero or one
    u = prior.scale_quantiles(layout, p.to(like))
    sigma = (u.exp() * prior.block_scales(layout, like))[:, :hidden]
    return torch.cat([sigma.square(), last.expand(num_scales, -1)], -1)


def _by_weight(layout: Layout, prior: ScaledWeights) -> bool:
    """Whether there is one scale a weight, and not one a block."""
    roles = [block.role for block in layout.blocks]
    given = {"weight": torch.as_tensor(prior.weight_scale), "bias": torch.as_tensor(prior.bias_scale)}
    return any(scale.ndim > 0 and scale.shape != (roles.count(role),) for role, scale in given.items())
