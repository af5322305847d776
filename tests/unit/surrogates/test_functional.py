"""The prior of the surrogate bnn-functional: what it is matched to, and that it is matched once."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest
import torch

import probnn
from probnn import likelihoods, priors
from probnn.errors import DomainError
from probnn.surrogates import Inferred, MatchedPrior, Surrogate, functional, get_surrogate

SMALL = MatchedPrior(priors.BNNPrior(hidden=(10,), activation="sin"), num_points=16, num_steps=20, num_draws=32)


@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("kernel", ["rbf", "matern52"])
def test_the_target_is_the_gaussian_process_of_the_surrogate_gp(d: int, kernel: str, seed: int) -> None:
    """Log length scales have the prior's law, for a box of twice the side; the kernel is the same."""
    target = MatchedPrior(kernel=kernel).target(d)
    law = target.hyperprior["lengthscale"]  # type: ignore[index]
    gp = priors.GPPrior(kernel)(d, 1).kernels[0].double()
    assert law.loc - math.log(2) == pytest.approx(gp.lengthscale_prior.loc.item())
    assert law.scale == pytest.approx(gp.lengthscale_prior.scale.item())
    own = target.kernels[0]
    lengthscale = torch.full((1, d), 0.7, dtype=torch.double)
    gp.lengthscale, own.lengthscale = lengthscale, 2 * lengthscale
    x = torch.rand(5, d, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    torch.testing.assert_close(own(2 * x - 1).to_dense(), gp(x).to_dense())
    assert not target.sample(2 * x - 1, (4000,), generator=torch.Generator().manual_seed(seed)).isnan().any()


def test_functions_come_closer_to_the_target() -> None:
    match = dataclasses.replace(SMALL, num_steps=60, num_draws=64).match(2)
    assert match.distances["energy"] < 0.5 * match.untuned["energy"]
    assert match.points.abs().max() <= 1 and match.points.shape == (16, 2)


def test_the_match_is_kept_and_is_the_same_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first = SMALL(2).weight_prior
    with monkeypatch.context() as patched:
        patched.setattr(functional, "match_prior", lambda *a, **k: pytest.fail("matched again"))
        assert SMALL(2, 3).weight_prior == first == dataclasses.replace(SMALL)(2).weight_prior
        torch.set_default_dtype(torch.double)
        try:
            assert SMALL(2).weight_prior == first and SMALL(2).dtype == torch.double
        finally:
            torch.set_default_dtype(torch.float32)
    program = (
        "import probnn, torch; torch.set_default_dtype(torch.double); torch.manual_seed(5)\n"
        "from probnn.surrogates import MatchedPrior\n"
        "base = probnn.priors.BNNPrior(hidden=(10,), activation='sin')\n"
        "print(MatchedPrior(base, num_points=16, num_steps=20, num_draws=32)(2).weight_prior)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(first)


def test_torchs_stream_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    SMALL.match(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_fixed_scales_are_matched_too() -> None:
    fixed = dataclasses.replace(SMALL, base=priors.BNNPrior(hidden=(10,), scale_prior=None))
    found = fixed(2).weight_prior
    assert isinstance(found, priors.NormalWeights) and found.weight_scale != fixed.base.weight_prior().weight_scale
    assert all(v == float(f"{v:.3g}") for v in found.weight_scale)


def test_networks_fit_the_likelihood() -> None:
    X = torch.rand(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    few = probnn.DeepEnsemble(size=2, steps=5)
    model = Surrogate(Inferred(SMALL, likelihoods.Heteroscedastic(), few)).fit(X, X.sum(-1, keepdim=True))
    assert model.process.output_dim == 2 and model.process.dtype == torch.double


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": "bnn"}, "base must be a probnn.priors.BNNPrior, got 'bnn'"),
        ({"base": priors.BNNPrior(scale_prior="half_cauchy")}, "half-Cauchy"),
        ({"kernel": "cosine"}, "kernel"),
        ({"num_points": 0}, "num_points"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_draws": 1}, "num_draws"),
        ({"shrinkage": -1.0}, "shrinkage"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DomainError, match=words):
        MatchedPrior(**options)


def test_bad_dimensions_are_refused() -> None:
    with pytest.raises(DomainError, match="MatchedPrior: input_dim"):
        SMALL(0)


def test_sghmc_takes_minibatches_of_big_tables_only() -> None:
    method: Any = get_surrogate("bnn-sghmc").build
    assert method.method.batch_size is None and method.method.num_chains * method.method.num_samples == 256
