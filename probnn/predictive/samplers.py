"""The sampler of draw posteriors, registered with BoTorch's `get_sampler`."""

from __future__ import annotations

import hashlib

import torch
from botorch.posteriors import Posterior
from botorch.posteriors.transformed import TransformedPosterior
from botorch.sampling.base import MCSampler
from botorch.sampling.get_sampler import GetSampler
from torch import Tensor

from ..errors import DomainError, UnsupportedError
from ..random import check_seed, generator_from, normal, uniform
from ..validation import sample_shape as check_sample_shape
from .draws import DrawsPosterior


class DrawsSampler(MCSampler):
    r"""Systematic sampling of the draws of a :class:`DrawsPosterior`, with fixed base samples.

    The N samples choose their draw with :math:`u_i = (\pi(i) + U) / N`, one uniform U and one random permutation
    :math:`\pi` (systematic resampling: Kitagawa, 1996; Douc and Cappé, 2005, arXiv:cs/0507025): draw s is used
    :math:`\lfloor N w_s \rfloor` or :math:`\lceil N w_s \rceil` times. Averages over equally weighted draws are
    exact where their number divides N. Observation noise is iid normal.

    Base samples are a function of the seed, the posterior's salt and the sizes alone: another t-batch changes
    nothing, more points only add noise for the new ones, models of different salt draw independently, and torch's
    global stream is not touched (with ``seed=None`` BoTorch takes the seed from it, once).

    Args:
        sample_shape: Shape of the samples; its product is N.
        seed: Seed from 0 to 2**63 - 1; None for a random one.

    Example:
        >>> posterior = DrawsPosterior(torch.arange(4.0).reshape(4, 1, 1))
        >>> DrawsSampler(torch.Size([8]), seed=0)(posterior).flatten().sort().values
        tensor([0., 0., 1., 1., 2., 2., 3., 3.])
    """

    def __init__(self, sample_shape: torch.Size, seed: int | None = None) -> None:
        sample_shape = check_sample_shape("DrawsSampler", sample_shape)
        super().__init__(sample_shape=sample_shape, seed=None if seed is None else check_seed("DrawsSampler", seed))
        self._made_for: tuple[object, ...] | None = None

    def forward(self, posterior: Posterior) -> Tensor:
        """Samples ``sample_shape x batch x q x m`` of a `DrawsPosterior`, or a `TransformedPosterior` of one.

        Raises:
            UnsupportedError: If it is another posterior.
        """
        self._construct_base_samples(posterior)
        return posterior.rsample_from_base_samples(sample_shape=self.sample_shape, base_samples=self.base_samples)

    def _construct_base_samples(self, posterior: Posterior) -> None:
        draws = posterior
        while isinstance(draws, TransformedPosterior):
            draws = draws._posterior
        if not isinstance(draws, DrawsPosterior):
            raise UnsupportedError(
                f"DrawsSampler: the posterior must be a DrawsPosterior, got a {type(draws).__name__}; "
                "botorch.sampling.get_sampler.get_sampler chooses a sampler for each posterior"
            )
        shape = self._get_collapsed_shape(posterior)
        wanted = (self.seed, draws.salt, shape, posterior.device)
        # A module cast to single precision makes them again: the choice of draws would no longer be exact.
        if self._made_for == wanted and self.base_samples is not None and self.base_samples.dtype == torch.float64:
            return
        digest = hashlib.blake2b(f"{self.seed}:{draws.salt}".encode(), digest_size=8).digest()
        generator, double = generator_from(int.from_bytes(digest, "big") >> 1), torch.float64
        n, (*kept, rows, m) = self.sample_shape.numel(), shape[len(self.sample_shape) :]
        sets = torch.Size(kept).numel()  # above 1 where BoTorch keeps a t-batch dimension (`batch_range_override`)
        order = uniform((sets, n), generator=generator, dtype=double).argsort(-1)
        u = (order + uniform((sets, 1), generator=generator, dtype=double)) / n
        # Row by row, so that the rows two calls have in common are the same.
        noise = [normal((sets, n, m), generator=generator, dtype=double) for _ in range(rows - 1)]
        choice = torch.special.ndtri(u).unsqueeze(-1).expand(sets, n, m)
        base_samples = torch.stack([choice, *noise], -2).movedim(1, 0).reshape(shape)
        self.register_buffer("base_samples", base_samples.to(posterior.device))
        self._made_for = wanted

    def _update_base_samples(self, posterior: Posterior, base_sampler: MCSampler) -> None:
        """Take the base samples of `base_sampler` for the points it has seen: the seed says it all."""
        self._instance_check(base_sampler)
        if base_sampler.sample_shape != self.sample_shape:
            shapes = f"{tuple(self.sample_shape)}, got {tuple(base_sampler.sample_shape)}"
            raise DomainError(f"DrawsSampler: base_sampler must have sample_shape {shapes}")
        self.seed = base_sampler.seed
        self._construct_base_samples(posterior)


@GetSampler.register(DrawsPosterior)
def _get_draws_sampler(posterior: DrawsPosterior, sample_shape: torch.Size, *, seed: int | None = None) -> DrawsSampler:
    return DrawsSampler(sample_shape, seed=seed)
