"""The Gaussian process that suits most functions on a box."""

from __future__ import annotations

from dataclasses import dataclass

from .. import validation
from .gaussian_process import GaussianProcess


@dataclass(frozen=True)
class GPPrior:
    r"""BoTorch's default prior: a stationary kernel whose length scales grow with the dimension.

    The kernel has one length scale an input with the prior :math:`\log\ell \sim N(\sqrt 2 + \tfrac12 \log d, 3)`,
    at least 0.025, no output scale, and a constant mean (Hvarfner, Hellsten and Nardi 2024, arXiv 2402.02229).
    It suits inputs in the unit cube and standardised outcomes; every outcome has a kernel of its own. With
    ``Gaussian(noise_median=exp(-2.5), noise_spread=0.5)`` :class:`probnn.Exact` fits the same
    hyper-parameters as BoTorch's SingleTaskGP.

    Args:
        kernel: ``"rbf"``, or ``"matern52"`` for rougher functions.

    Example:
        >>> prior = GPPrior()(2, 1)
        >>> prior.input_dim, prior.output_dim, prior.trainable
        (2, 1, ('0.kernel.raw_lengthscale', '0.mean.raw_constant'))
    """

    kernel: str = "rbf"

    def __post_init__(self) -> None:
        validation.choice("priors.GPPrior", "kernel", self.kernel, ("rbf", "matern52"))

    def __call__(self, input_dim: int, num_channels: int) -> GaussianProcess:
        """The process of `input_dim` inputs and `num_channels` independent outcomes."""
        from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
        from gpytorch.means import ConstantMean

        validation.positive_int("priors.GPPrior", "input_dim", input_dim)
        kernel = get_covar_module_with_dim_scaled_prior(input_dim, use_rbf_kernel=self.kernel == "rbf")
        return GaussianProcess(kernel, ConstantMean(), input_dim=input_dim, output_dim=num_channels)
