"""The joint density around one point, with the function replaced by its linearisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import random as rnd
from ..errors import UnsupportedError
from ..likelihoods import Likelihood
from ..process import ParametricProcess
from .curvature import information, jacobian_pieces, jacobian_slope, weigh, weigh_root
from .gaussian import gaussian_law
from .spread import Spread
from .target import Target


def prior_spread(where: str, prior: ParametricProcess, theta: Tensor) -> Spread:
    """The Gaussian with the curvature of the log prior at theta (of length P): exact for Gaussian priors.

    Other priors must be independent over coordinates and log-concave where they are asked, as
    non-centred hierarchical ones are; `UnsupportedError` says where they are not.
    """
    law = gaussian_law(prior)
    if law is not None:
        return law[1]
    with torch.enable_grad():
        leaf = theta.detach().requires_grad_(True)
        slope = torch.autograd.grad(prior._log_prob(leaf), leaf, create_graph=True)[0]

        def product(v: Tensor) -> Tensor:
            if not slope.requires_grad:  # a slope that is constant almost everywhere
                return torch.zeros_like(v)
            out = torch.autograd.grad(slope @ v, leaf, retain_graph=True, allow_unused=True)[0]
            return torch.zeros_like(v) if out is None else -out

        diagonal = product(torch.ones_like(theta))
        probe = rnd.normal(theta.shape, generator=rnd.generator_from(0), like=theta)
        coupled = product(probe) - diagonal * probe
    name = type(getattr(prior, "weight_prior", prior)).__name__
    # A diagonal matrix times a random vector is the product of the two; any other matrix's almost surely is not.
    if coupled.abs().max() > 1e3 * torch.finfo(theta.dtype).eps * (1 + diagonal.abs().max()):
        raise UnsupportedError(
            f"{where}: the log prior of {name} couples coordinates and is not known to be Gaussian; "
            "use a prior with independent coordinates, or probnn.HMC"
        )
    if (diagonal == 0).any():
        raise UnsupportedError(
            f"{where}: the log prior of {name} has no curvature at the mode (it is flat, or linear beside a kink), so "
            "it has no Gaussian approximation there; use priors.NormalWeights or HierarchicalWeights, or probnn.HMC"
        )
    if not (diagonal > 0).all():
        raise UnsupportedError(
            f"{where}: the log prior of {name} is not concave at the mode (curvature {diagonal.min().item():.3g}), so "
            "it has no Gaussian approximation there; use priors.NormalWeights or HierarchicalWeights, or probnn.HMC"
        )
    return Spread.diagonal(diagonal.rsqrt())


class LocalModel:
    r"""The joint density of theta and Y around one point, with the function replaced by its linearisation.

    In coordinates u in which the prior's Gaussian is standard normal, with features F = J S, the
    channels are :math:`f_0 + F(u - u_0)`, and the curvature of the log likelihood is
    :math:`F^\top \Lambda F` with :math:`\Lambda` from :func:`information`. All of this is about the k
    coordinates of the support, given the others.

    Args:
        where: For error messages.
        target: The joint density.
        z: The point (theta, psi).
        support: Indices of the k coordinates; None: all.
        groups: For each of the k coordinates the number of its block, where :meth:`evidence` is asked
            for other scales of the blocks; None: one block.
        diagonal: Keep only the diagonal of the curvature (and no Jacobian).
    """

    def __init__(
        self,
        where: str,
        target: Target,
        z: Tensor,
        support: Tensor | None = None,
        groups: Tensor | None = None,
        diagonal: bool = False,
    ):
        self.where, self.target, self.groups, self.diagonal = where, target, groups, diagonal
        self.theta, self.psi = target.split(z.detach())
        self.chosen = chosen = slice(None) if support is None else support
        self.prior = prior_spread(where, target.prior, self.theta)
        if diagonal and self.prior.gains.numel():
            raise UnsupportedError(
                f"{where}: structure='diagonal' needs a prior of independent coordinates, got a "
                f"{type(target.prior).__name__} with correlated ones; use structure='full'"
            )
        if support is not None:
            self.prior = Spread.from_rows(self.prior.scale[support], self.prior.rows()[:, support])
        log_prior, slope = target.prior._log_prob_and_grad(self.theta)
        self.u = -self.prior.lower(slope[chosen])
        self.size = self.u.shape[0]
        # What the log prior at theta has beyond the Gaussian's: nothing where it is one.
        self.surplus = 0.0
        if support is None and gaussian_law(target.prior) is None:
            constant = self.prior.log_det() + self.size * math.log(2 * math.pi)
            self.surplus = (log_prior + 0.5 * (self.u.square().sum() + constant)).item()
        self._cache: dict[str, Tensor] = {}
        values, parts = [], []
        for rows, f, J in jacobian_pieces(target.prior, self.theta, target.X):
            values.append(f)
            J = J[..., chosen]
            parts.append(self._squares(rows, f, J) if diagonal else J)
        self.f = torch.cat(values)
        if diagonal:
            self._cache["squares"] = torch.stack(parts).sum(0)
        else:
            self.jacobian = torch.cat(parts)
            self.features = self.prior.lower(self.jacobian)

    def _squares(self, rows: slice, f: Tensor, J: Tensor) -> Tensor:
        """Sums over rows of the diagonal of F' Lambda F, ``1 x k``; one a channel where rows share Lambda."""
        F, target = J * self.prior.scale, self.target
        known = None if target.noise_variance is None else target.noise_variance[rows]
        middle = information(target.likelihood, target.Y[rows], f, self.psi, known).detach()
        return F.square().sum(0) if middle.ndim == 1 else (F * weigh(middle, F)).sum((0, 1)).unsqueeze(0)

    def _information(self, likelihood: Likelihood, psi: Tensor) -> Tensor:
        return information(likelihood, self.target.Y, self.f, psi, self.target.noise_variance)

    def informed(self) -> tuple[Tensor, Tensor]:
        """Eigenvectors ``k x r`` and eigenvalues, of length r, of F' Lambda F: what the data say about u."""
        middle = self._information(self.target.likelihood, self.psi).detach()
        rows = weigh_root(self.where, middle, self.features).reshape(-1, self.size)
        found = Spread.from_rows(torch.ones_like(self.u), rows)
        return found.directions, found.gains

    def spread(self) -> Spread:
        """The Gaussian posterior of theta on the support."""
        middle = self._information(self.target.likelihood, self.psi).detach()
        if self.diagonal:
            return Spread.diagonal(self.prior.scale * (1 + self._diagonal(middle)).rsqrt())
        rows = weigh_root(self.where, middle, self.jacobian * self.prior.scale).reshape(-1, self.size)
        return Spread.from_rows(self.prior.scale, torch.cat([self.prior.rows(), rows]))

    def evidence(self, likelihood: Likelihood, psi: Tensor, log_scales: Tensor | None = None) -> Tensor:
        r"""Log evidence of the linearised model, at other hyper-parameters than its own too.

        :math:`\max_u\{\log p(y \mid u) - |u|^2/2\} - \tfrac12\log\det(I + F^\top\Lambda F)`, the log likelihood
        expanded to second order in the channels: exact for linear functions and Gaussian outcomes,
        differentiable in every argument. (With `diagonal` the maximum is left where it is.)

        Args:
            likelihood: With its hyper-parameters.
            psi: Its parameters, of length R.
            log_scales: Log of the factor by which the prior's scale of each group changes; None: zeros.
        """
        with torch.enable_grad():
            f = self.f.detach().requires_grad_(True)
            fit = likelihood.log_prob(self.target.Y, f, psi.unsqueeze(-2), self.target.noise_variance).sum()
            slope = torch.autograd.grad(fit, f, create_graph=True)[0]
        middle = self._information(likelihood, psi)
        factor = self.u.new_ones(1) if log_scales is None else log_scales.exp()
        each = factor[self.groups] if self.groups is not None else factor
        if self.diagonal:
            log_det = torch.log1p(each.square() * self._diagonal(middle)).sum()
            gain = -0.5 * ((self.u / each).square().sum() + log_det)
        elif self.f.numel() <= self.size:
            gain = self._over_functions(slope, middle, factor)
        else:
            gain = self._over_weights(slope, middle, each)
        return fit + gain + self.surplus

    def response(self, likelihood: Likelihood, psi: Tensor, log_scales: Tensor | None = None) -> Tensor:
        r"""What :meth:`evidence` leaves out: its curvature changes as the mode follows the hyper-parameters.

        With w the gradient in theta of :math:`-\tfrac12\log\det(I + F^\top\Lambda F)` and H the Hessian of
        :math:`-\log p(\theta, Y)`, that is the gradient in the hyper-parameters, at the model's own, of
        :math:`w^\top H^{-1}\,\nabla_\theta \log p(\theta, Y)` (implicit function theorem). Not followed
        with `diagonal`.
        """
        if "follow" not in self._cache:
            self._cache["follow"] = torch.zeros_like(self.u) if self.diagonal else self._follow()
            self._cache["across"] = torch.zeros_like(self.f) if self.diagonal else self.jacobian @ self._cache["follow"]
        with torch.enable_grad():
            f = self.f.detach().requires_grad_(True)
            fit = likelihood.log_prob(self.target.Y, f, psi.unsqueeze(-2), self.target.noise_variance).sum()
            slope = torch.autograd.grad(fit, f, create_graph=True)[0]
        prior = self.u * self._cache["follow"] / self.prior.scale
        if log_scales is not None and self.groups is not None:
            prior = prior * (-2 * log_scales[self.groups]).exp()
        return (slope * self._cache["across"]).sum() - prior.sum()

    def _follow(self) -> Tensor:
        """H^-1 w on the support, by conjugate gradients in the coordinates that the posterior whitens."""
        posterior, target = self.spread(), self.target
        middle = self._information(target.likelihood, self.psi).detach()
        spread = posterior.lift(posterior.lower(self.jacobian))  # J Sigma
        weights = self.features.new_zeros(*self.f.shape, self.theta.shape[0])
        weights[..., self.chosen] = weigh(middle, spread)
        w = -jacobian_slope(target.prior, self.theta, target.X, weights)[self.chosen]
        with torch.enable_grad():
            f = self.f.detach().requires_grad_(True)
            moving = information(target.likelihood, target.Y, f, self.psi, target.noise_variance)
            if moving.requires_grad:
                direct = torch.autograd.grad((moving * (spread @ self.jacobian.mT)).sum(), f)[0]
                w = w - 0.5 * torch.einsum("nc,nck->k", direct, self.jacobian)
            leaf = torch.cat([self.theta, self.psi]).requires_grad_(True)
            slope = torch.autograd.grad(target.log_prob(leaf), leaf, create_graph=True)[0]

        def hessian(x: Tensor) -> Tensor:
            full = torch.zeros_like(leaf)
            full[: self.theta.shape[0]][self.chosen] = posterior.lift(x)
            product = torch.autograd.grad(slope, leaf, full, retain_graph=True)[0]
            return -posterior.lower(product[: self.theta.shape[0]][self.chosen])

        residual = posterior.lower(w)
        solution, direction, first = torch.zeros_like(residual), residual.clone(), residual.norm()
        for _ in range(100):
            if residual.norm() <= 1e-4 * first:
                break
            product = hessian(direction)
            curvature = direction @ product
            if curvature <= 0:  # short of the mode the Hessian may be indefinite: what is solved so far serves
                break
            length = (residual @ residual) / curvature
            solution = solution + length * direction
            fresh = residual - length * product
            direction = fresh + (fresh @ fresh) / (residual @ residual) * direction
            residual = fresh
        return posterior.lift(solution)

    def _diagonal(self, middle: Tensor) -> Tensor:
        """Diagonal of F' Lambda F."""
        if middle.ndim == 1:
            return middle @ self._cache["squares"]
        if middle.requires_grad:
            name = type(self.target.likelihood).__name__
            raise UnsupportedError(
                f"{self.where}: structure='diagonal' cannot infer the parameters of a {name} likelihood; "
                "use structure='last_layer'"
            )
        return self._cache["squares"][0]

    def _over_functions(self, slope: Tensor, middle: Tensor, factor: Tensor) -> Tensor:
        """What the evidence adds to the fit, through n c x n c matrices."""
        if "kernels" not in self._cache:
            flat = self.features.reshape(-1, self.size)
            parts = [flat] if self.groups is None else [flat[:, self.groups == b] for b in range(factor.shape[0])]
            self._cache["kernels"] = torch.stack([part @ part.mT for part in parts])
            self._cache["offset"] = flat @ self.u
        kernel, offset = torch.einsum("b,bij->ij", factor.square(), self._cache["kernels"]), self._cache["offset"]
        n, c = self.f.shape
        mixed = weigh(middle, kernel.reshape(n, c, -1)).reshape(n * c, -1)
        system = mixed + torch.eye(n * c, dtype=mixed.dtype, device=mixed.device)
        slope = slope.reshape(-1)
        dual = torch.linalg.solve(system, slope + weigh(middle, offset.reshape(n, c, 1)).reshape(-1))
        moved = kernel @ dual
        shift = moved - offset
        curved = shift @ weigh(middle, shift.reshape(n, c, 1)).reshape(-1)
        return slope @ shift - 0.5 * (curved + dual @ moved + torch.linalg.slogdet(system).logabsdet)

    def _over_weights(self, slope: Tensor, middle: Tensor, each: Tensor) -> Tensor:
        """The same through k x k matrices, for more rows than coordinates."""
        F = self.features
        if middle.ndim == 1:
            if "grams" not in self._cache:
                self._cache["grams"] = torch.stack([F[:, j].mT @ F[:, j] for j in range(F.shape[1])])
            gram = torch.einsum("j,jkl->kl", middle, self._cache["grams"])
        elif middle.requires_grad or "gram" not in self._cache:
            gram = torch.einsum("nck,ncl->kl", F, weigh(middle, F))
            if not middle.requires_grad:
                self._cache["gram"] = gram
        else:
            gram = self._cache["gram"]
        gram, start = gram * each * each.unsqueeze(-1), self.u / each
        push = torch.einsum("nc,nck->k", slope, F) * each
        eye = torch.eye(self.size, dtype=gram.dtype, device=gram.device)
        chol, failed = torch.linalg.cholesky_ex(gram + eye)
        if failed:  # the one is lost beside the rest: a triangular root of the sum without forming it
            rows = (weigh_root(self.where, middle, F) * each).reshape(-1, self.size)
            chol = torch.linalg.qr(torch.cat([rows, eye])).R.mT
            chol = chol * chol.diagonal().sign()
        shift = torch.cholesky_solve((push - start).unsqueeze(-1), chol).squeeze(-1)
        u = start + shift
        return push @ shift - 0.5 * (shift @ gram @ shift + u @ u) - chol.diagonal().log().sum()
