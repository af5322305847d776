"""Function draws in BoTorch's pathwise layout are the stored functions, chosen by their weights."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from botorch.acquisition.thompson_sampling import PathwiseThompsonSampling
from botorch.acquisition.utils import get_optimal_samples
from botorch.generation.sampling import MaxPosteriorSampling
from botorch.models.deterministic import MatheronPathModel
from botorch.optim import optimize_acqf

import probnn
from probnn.errors import ShapeError, UnsupportedError
from probnn.likelihoods import Gaussian
from probnn.surrogates import ProcessPaths
from tests.unit.surrogates.toy import BOX, Marginals, model, points


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("shape", [(), (5,), (3, 5)])
def test_paths_are_stored_functions(m: int, shape: tuple[int, ...], seed: int) -> None:
    made, X = model(m=m, scaled=True), points(7)
    paths = MatheronPathModel(made, torch.Size(shape), seed=seed)
    values = paths(X)
    assert values.shape == (*shape, 7, m)
    stored = made.posterior(X).values
    for one in values.reshape(-1, 7, m):
        assert (stored - one).abs().amax((-1, -2)).min() < 1e-12
    assert torch.equal(paths(X), values)
    assert torch.equal(MatheronPathModel(made, torch.Size(shape), seed=seed)(X), values)
    assert not torch.equal(MatheronPathModel(made, torch.Size(shape), seed=seed + 1)(X), values)


def test_each_path_meets_its_own_inputs() -> None:
    made = model(m=2, scaled=True)
    paths = MatheronPathModel(made, torch.Size([5]), seed=0)
    X = points(4, 5, 3)
    got = paths(X)
    assert got.shape == (4, 5, 3, 2)
    for i in range(5):
        torch.testing.assert_close(got[:, i], paths(X[:, i].unsqueeze(1))[:, i])
    with pytest.raises(ShapeError, match=r"\(5,\)"):
        paths(points(4, 3))


def test_paths_of_a_subset_are_columns() -> None:
    whole, X = model(m=3), points(6)
    a = MatheronPathModel(whole, torch.Size([4]), seed=0)(X)[..., [2]]
    b = MatheronPathModel(whole.subset_output([2]), torch.Size([4]), seed=0)(X)
    assert torch.equal(a, b)


def test_draws_are_chosen_by_their_weights(seed: int) -> None:
    made, X, n = model(16), points(1), 20_000
    torch.manual_seed(seed)
    values = MatheronPathModel(made, torch.Size([n]))(X).flatten()
    counts = (values[:, None] - made.posterior(X).values.flatten()).abs().argmin(-1).bincount(minlength=16)
    expected = n * made.process.weights
    assert scipy.stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-5


def test_botorch_tools_for_paths() -> None:
    made = model(scaled=True)
    torch.manual_seed(0)
    acquisition = PathwiseThompsonSampling(made)
    candidates, value = optimize_acqf(acquisition, BOX, q=3, num_restarts=2, raw_samples=16)
    assert candidates.shape == (3, 2) and value.isfinite()
    inputs, outputs = get_optimal_samples(made, BOX, num_optima=6, raw_samples=64, num_restarts=2)
    assert inputs.shape == (6, 2) and outputs.shape == (6, 1)
    stored = made.posterior(inputs.unsqueeze(-2)).values
    assert (stored - outputs[:, None, None]).abs().amin(1).max() < 1e-9
    chosen = MaxPosteriorSampling(made, replacement=False)(points(40), num_samples=5)
    assert len(chosen.unique(dim=0)) == 5


class Walks(probnn.StochasticProcess):
    """Functions that are drawn, not stored: random planes."""

    input_dim, output_dim, dtype, device = 2, 1, torch.float64, torch.device("cpu")

    def _sample_functions(self, shape, generator):  # type: ignore[no-untyped-def]
        slopes = torch.randn(*shape, 2, generator=generator, dtype=torch.float64)
        return lambda X: X @ slopes[(..., *(None,) * (X.ndim - 2), slice(None), None)]


def test_processes_without_stored_draws() -> None:
    made = probnn.ProcessModel(Walks())
    for shape in ((), (5,), (2, 5)):
        paths = MatheronPathModel(made, torch.Size(shape), seed=0)
        X = points(7)
        values = paths(X)
        assert values.shape == (*shape, 7, 1)
        planes = values.reshape(-1, 7)
        slopes = torch.linalg.lstsq(X, planes.T).solution
        torch.testing.assert_close(X @ slopes, planes.T)  # each is one plane
        assert len(slopes.T.unique(dim=0)) == max(1, planes.shape[0])
        own = points(4, *shape, 7, seed=1)
        expected = torch.einsum("b...nd,d...->b...n", own, slopes.reshape(2, *shape))
        torch.testing.assert_close(paths(own).squeeze(-1), expected)
    torch.manual_seed(0)
    assert PathwiseThompsonSampling(made)(points(4, 3)).shape == (4,)


def test_what_has_no_functions_says_so() -> None:
    with pytest.raises(UnsupportedError, match="joint=None"):
        MatheronPathModel(probnn.ProcessModel(Marginals()))
    batch = model().condition_on_observations(points(3, 1), torch.zeros(3, 1, 1, dtype=torch.float64))
    with pytest.raises(UnsupportedError, match="batch"):
        ProcessPaths(batch, torch.Size([2]))
    with pytest.raises(ShapeError, match=r"\.\.\. x 1 x n x d"):
        ProcessPaths(model(m=2), torch.Size([2]))(points(4, 3))


def test_inferred_noise_without_draws_of_it_is_refused() -> None:
    """Zeros for psi would be a noise variance of exactly 1."""
    process = Walks()
    process.likelihood = Gaussian()
    for call in (
        lambda: process.predict(points(3), observation_noise=True),
        lambda: process.predict(points(3)),
        lambda: MatheronPathModel(probnn.ProcessModel(process)),
    ):
        with pytest.raises(UnsupportedError, match=r"Walks: its likelihood has inferred parameters.*noise=0.1"):
            call()
    process.likelihood = Gaussian(noise=0.5)
    noise = process.predict(points(3), observation_noise=True).variance - process.predict(points(3)).variance
    assert (noise - 0.25).abs().max() < 1e-12
    assert MatheronPathModel(probnn.ProcessModel(process))(points(3)).shape == (3, 1)
