"""The contract of surrogates: BoTorch's acquisition functions work, and say what they must about draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from botorch.acquisition import (
    ExpectedImprovement,
    LogExpectedImprovement,
    PosteriorMean,
    UpperConfidenceBound,
    qKnowledgeGradient,
    qNegIntegratedPosteriorVariance,
    qNoisyExpectedImprovement,
    qSimpleRegret,
    qUpperConfidenceBound,
)
from botorch.acquisition.bayesian_active_learning import qBayesianActiveLearningByDisagreement
from botorch.acquisition.cost_aware import InverseCostWeightedUtility
from botorch.acquisition.joint_entropy_search import qJointEntropySearch
from botorch.acquisition.knowledge_gradient import qMultiFidelityKnowledgeGradient
from botorch.acquisition.logei import qLogExpectedImprovement, qLogNoisyExpectedImprovement
from botorch.acquisition.max_value_entropy_search import qLowerBoundMaxValueEntropy, qMaxValueEntropy
from botorch.acquisition.multi_objective.logei import (
    qLogExpectedHypervolumeImprovement,
    qLogNoisyExpectedHypervolumeImprovement,
)
from botorch.acquisition.multi_step_lookahead import qMultiStepLookahead
from botorch.acquisition.objective import LinearMCObjective, ScalarizedPosteriorTransform
from botorch.acquisition.predictive_entropy_search import qPredictiveEntropySearch
from botorch.acquisition.thompson_sampling import PathwiseThompsonSampling
from botorch.generation.sampling import MaxPosteriorSampling
from botorch.models import ModelList, SingleTaskGP
from botorch.models.cost import AffineFidelityCostModel
from botorch.models.deterministic import MatheronPathModel
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from botorch.sampling.get_sampler import get_sampler
from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning
from torch import Tensor

import probnn
from probnn.errors import UnsupportedError
from probnn.predictive import DrawsSampler
from probnn.surrogates import ExpectedInformationGain, MaxValueEntropy
from tests.surrogate_models import ALL, BOUNDS, DOUBLE, DRAWS, JOINT, S, data, fitted, points, small

pytestmark = [
    # Lookahead with few draws rests on few of them, short HMC diverges here and there, plain EI has numerical issues.
    pytest.mark.filterwarnings("ignore::probnn.errors.DivergenceWarning"),
    pytest.mark.filterwarnings("ignore::probnn.errors.DegenerateWeightsWarning"),
    pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.NumericsWarning"),
]


def sampler(n: int = 32) -> SobolQMCNormalSampler:
    return SobolQMCNormalSampler(torch.Size([n]), seed=0)


def in_box(x: Tensor) -> bool:
    return bool(((x >= BOUNDS[0]) & (x <= BOUNDS[1])).all())


class BestOfSobol:
    """Initial conditions for BoTorch's optimiser: the best of 256 Sobol points, whose value is noted."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def __call__(self, acq_function: Any, bounds: Tensor, q: int, **settings: Any) -> Tensor:
        if isinstance(acq_function, qKnowledgeGradient):  # one-shot: the fantasies' points beside the candidates
            q = acq_function.get_augmented_q_batch_size(q)
        u = torch.quasirandom.SobolEngine(2 * q, scramble=True, seed=0).draw(256, dtype=DOUBLE).reshape(256, q, 2)
        X = bounds[0] + (bounds[1] - bounds[0]) * u
        with torch.no_grad():
            values = acq_function(X)
        assert values.shape == (256,) and values.isfinite().all()
        self.values.append(values.max().item())
        return X[values.argmax()].unsqueeze(0)


def optimised(acquisition: Any, q: int = 1, *, size: int | None = None, **settings: Any) -> None:
    """The optimiser climbs from the best of 256 Sobol points, so gradients and values fit together.

    It is given batches of `q` and returns `size` candidates (None: q as well).
    """
    start, options = BestOfSobol(), {"maxiter": 8} | settings.pop("options", {})
    x, value = optimize_acqf(
        acquisition, BOUNDS, q=q, num_restarts=1, raw_samples=256, ic_generator=start, options=options, **settings
    )
    assert x.shape == (size or q, 2) and in_box(x)
    steps = q if settings.get("sequential") else 1
    assert len(start.values) == value.numel() == steps
    assert (value.reshape(steps) >= torch.tensor(start.values, dtype=DOUBLE) - 1e-9).all()


ACQUISITIONS: dict[str, tuple[Callable[[Any, float], Any], int]] = {
    "qLogEI": (lambda model, best: qLogExpectedImprovement(model, best, sampler=sampler()), 1),
    "qLogEI, q = 3": (lambda model, best: qLogExpectedImprovement(model, best), 3),
    "qLogNEI": (lambda model, best: qLogNoisyExpectedImprovement(model, data()[0], sampler=sampler()), 2),
    "qLogNEI, pruned": (
        lambda model, best: qLogNoisyExpectedImprovement(model, data()[0], prune_baseline=True, sampler=sampler()),
        2,
    ),
    "qLogNEI, pending": (
        lambda model, best: qLogNoisyExpectedImprovement(model, data()[0], X_pending=points(2), sampler=sampler()),
        1,
    ),
    "qUCB": (lambda model, best: qUpperConfidenceBound(model, beta=2.0, sampler=sampler()), 2),
    "qSimpleRegret": (lambda model, best: qSimpleRegret(model, sampler=sampler()), 2),
    "LogEI": (lambda model, best: LogExpectedImprovement(model, best), 1),
    "UCB": (lambda model, best: UpperConfidenceBound(model, beta=2.0), 1),
    "PosteriorMean": (lambda model, best: PosteriorMean(model), 1),
    "qGIBBON": (lambda model, best: qLowerBoundMaxValueEntropy(model, points(50)), 1),
    "qNIPV": (lambda model, best: qNegIntegratedPosteriorVariance(model, points(16), sampler=sampler(1)), 1),
    "constrained": (
        lambda model, best: qLogExpectedImprovement(
            model, best, constraints=[lambda Z: Z[..., 0] - best - 5.0], sampler=sampler()
        ),
        2,
    ),
}


# C12: one outcome


@pytest.mark.parametrize("acquisition", ACQUISITIONS)
@pytest.mark.parametrize("name", ALL)
def test_acquisitions_are_optimised(name: str, acquisition: str) -> None:
    make, q = ACQUISITIONS[acquisition]
    model = fitted(name)
    torch.manual_seed(0)
    optimised(make(model, data()[1].max().item()), q)


@pytest.mark.parametrize("name", ALL)
def test_sequential_batches(name: str) -> None:
    model, best = fitted(name), data()[1].max().item()
    torch.manual_seed(0)
    for acquisition in (
        qLogExpectedImprovement(model, best, sampler=sampler()),
        qLogNoisyExpectedImprovement(model, data()[0], sampler=sampler()),
    ):
        optimised(acquisition, 3, sequential=True, options={"maxiter": 4})


@pytest.mark.parametrize("name", ALL)
def test_knowledge_gradient_and_lookahead(name: str) -> None:
    model = fitted(name)
    torch.manual_seed(0)
    for q in (1, 2):
        optimised(qKnowledgeGradient(model, num_fantasies=8 // q), q, options={"maxiter": 3})
    lookahead = qMultiStepLookahead(model, batch_sizes=[1], num_fantasies=[4])
    optimised(lookahead, lookahead.get_augmented_q_batch_size(1), size=1, options={"maxiter": 3})
    deeper = qMultiStepLookahead(model, batch_sizes=[1, 1], num_fantasies=[2, 2])
    assert deeper(points(3, deeper.get_augmented_q_batch_size(1))).isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_multi_fidelity_knowledge_gradient(name: str) -> None:
    """The second input as a fidelity, cost-aware."""
    model = fitted(name)
    cost = AffineFidelityCostModel(fidelity_weights={1: 1.0}, fixed_cost=5.0)

    def to_full(X: Tensor) -> Tensor:
        return torch.cat([X[..., :1], torch.full_like(X[..., 1:], 1.5)], -1)

    torch.manual_seed(0)
    current = model.posterior(to_full(data()[0])).mean.max()
    acquisition = qMultiFidelityKnowledgeGradient(
        model,
        num_fantasies=4,
        current_value=current,
        cost_aware_utility=InverseCostWeightedUtility(cost),
        project=to_full,
    )
    optimised(acquisition, options={"maxiter": 3})


# C13: several outcomes, lists


def _list(kind: str, name: str) -> Any:
    X, Y = data(2)
    if kind == "one model":
        return fitted(name, 2)
    other = (
        SingleTaskGP(X, Y[:, 1:], train_Yvar=torch.full_like(Y[:, 1:], 0.6))
        if kind == "beside SingleTaskGP"
        else fitted(name, 2).subset_output([1])
    )
    return ModelList(fitted(name, 2).subset_output([0]), other)


@pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.InputDataWarning")  # of the unscaled SingleTaskGP
@pytest.mark.parametrize("kind", ["one model", "list", "beside SingleTaskGP"])
@pytest.mark.parametrize("name", ALL)
def test_hypervolume_improvement(name: str, kind: str) -> None:
    model, (X, Y) = _list(kind, name), data(2)
    torch.manual_seed(0)
    reference = Y.amin(0)
    noisy = qLogNoisyExpectedHypervolumeImprovement(model, reference, X, prune_baseline=True)
    optimised(noisy, 2, sequential=True, options={"maxiter": 3})
    partitioning = FastNondominatedPartitioning(reference, Y)
    plain = qLogExpectedHypervolumeImprovement(model, reference, partitioning)
    assert plain(points(3, 2)).isfinite().all()
    alone = plain(points(3, 2)[:1])
    torch.testing.assert_close(plain(points(3, 2)[:1].expand(4, 2, 2)), alone.expand(4), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", JOINT)
def test_scalarised_posterior_equals_the_objective(name: str) -> None:
    model, X = fitted(name, 2), points(4, 2)
    weights = torch.tensor([0.7, -0.4], dtype=DOUBLE)
    best = (model.posterior(X).mean @ weights).min()
    transform = ScalarizedPosteriorTransform(weights)
    if name in DRAWS:
        fixed = DrawsSampler(torch.Size([2 * S]), seed=0)
        a = qLogExpectedImprovement(model, best, posterior_transform=transform, sampler=fixed)(X)
        b = qLogExpectedImprovement(model, best, objective=LinearMCObjective(weights), sampler=fixed)(X)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    else:  # one normal a point, or one for each outcome: equal in law
        a = ExpectedImprovement(model, best, posterior_transform=transform)(X[:, :1])
        y = model.posterior(X[:, :1]).rsample(torch.Size([20_000])) @ weights
        gain = (y - best).clamp_min(0).squeeze(-1)
        assert ((a - gain.mean(0)).abs() < 5 * gain.std(0) / 20_000**0.5).all()


@pytest.mark.parametrize("name", ALL)
def test_constraint_on_a_second_outcome(name: str) -> None:
    model, Y = fitted(name, 2), data(2)[1]
    torch.manual_seed(0)
    acquisition = qLogExpectedImprovement(
        model,
        Y[:, 0].max(),
        objective=LinearMCObjective(torch.tensor([1.0, 0.0], dtype=DOUBLE)),
        constraints=[lambda Z: Z[..., 1] - 20.0],
        sampler=sampler(),
    )
    optimised(acquisition, 2)


# C14, C15: pending points and baselines


@pytest.mark.parametrize("name", DRAWS)
def test_pending_points_are_concatenated(name: str) -> None:
    model, X, pending = fitted(name), points(5, 1), points(2, seed=3)
    best = data()[1].mean().item()
    same = DrawsSampler(torch.Size([128]), seed=4)
    a = qLogExpectedImprovement(model, best, sampler=same, X_pending=pending)(X)
    b = qLogExpectedImprovement(model, best, sampler=same)(torch.cat([X, pending.expand(5, 2, 2)], -2))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", DRAWS)
def test_noisy_improvement_is_per_draw(name: str) -> None:
    model = probnn.ProcessModel(fitted(name).process.thin(S), num_draws=S)  # equal weights
    baseline, X = points(4, seed=2) / 2, points(5, 1) / 2
    acquisition = qNoisyExpectedImprovement(
        model, baseline, prune_baseline=False, cache_root=False, sampler=DrawsSampler(torch.Size([S]), seed=0)
    )
    gain = model.posterior(X).values.squeeze(-1).squeeze(-1) - model.posterior(baseline).values.amax((-1, -2))
    torch.testing.assert_close(acquisition(X), gain.clamp_min(0).mean(-1), rtol=0, atol=1e-12)
    with pytest.warns(RuntimeWarning, match="cache_root"):
        cached = qNoisyExpectedImprovement(
            model, baseline, prune_baseline=False, cache_root=True, sampler=DrawsSampler(torch.Size([S]), seed=0)
        )
    assert torch.equal(cached(X), acquisition(X))


# C16: what needs a Gaussian


@pytest.mark.parametrize("name", DRAWS)
def test_gaussian_only_acquisitions_name_the_alternative(name: str) -> None:
    model, X, grid = fitted(name), points(3, 1), points(32)
    words = "MaxValueEntropy or ExpectedInformationGain"
    with pytest.raises(UnsupportedError, match=words):
        qMaxValueEntropy(model, grid)(X)
    with pytest.raises(UnsupportedError, match=words):
        qPredictiveEntropySearch(model, grid[:2])
    optima = model.posterior(grid[:2]).mean.detach()
    with pytest.raises(UnsupportedError, match=words):
        qJointEntropySearch(model, grid[:2], optima, condition_noiseless=False)(X)
    with pytest.raises(RuntimeError, match="Fully Bayesian"):  # BoTorch asks for one class of models
        qBayesianActiveLearningByDisagreement(model)
    for alternative in (ExpectedInformationGain(model, num_samples=S), MaxValueEntropy(model, grid, num_bins=4)):
        optimised(alternative)


def test_gaussian_processes_do_without_alternatives() -> None:
    torch.manual_seed(0)
    optimised(qMaxValueEntropy(fitted("gp"), points(32)))


# C20: paths


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("name", JOINT)
def test_paths(name: str, m: int) -> None:
    model, X = fitted(name, m), points(7)
    paths = MatheronPathModel(model, torch.Size([5]), seed=1)
    values = paths(X)
    assert values.shape == (5, 7, m) and torch.equal(paths(X), values)
    assert torch.equal(MatheronPathModel(model, torch.Size([5]), seed=1)(X), values)
    if name in DRAWS:
        distance = (model.posterior(X).values - values.unsqueeze(1)).abs().amax((-1, -2))
        assert distance.amin(-1).max() < 1e-9
    f = model.process.sample_functions((5,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(f(X[:3]), f(X[:3]))


@pytest.mark.parametrize("name", DRAWS)
def test_paths_are_drawn_by_weight(name: str, seed: int) -> None:
    """Ten thousand paths of a model with unequal weights, by the draws they are."""
    noise, n = torch.full((1, 1), 2.0, dtype=DOUBLE), 10_000
    model = fitted(name).condition_on_observations(points(1, seed=5), data()[1][:1] + 4.0, noise)
    V = model.posterior(points(1)).values.flatten()
    values = MatheronPathModel(model, torch.Size([n]), seed=seed)(points(1))
    distance = (V - values.reshape(n, 1)).abs()
    assert distance.amin(-1).max() < 1e-9
    # A Markov chain may repeat a draw: the weights of equal functions add up at the first of them.
    first = ((V - V.unsqueeze(-1)).abs() < 1e-9).long().argmax(-1)
    weights = torch.zeros(S, dtype=DOUBLE).index_add(0, first, model.process.weights)
    counts = first[distance.argmin(-1)].bincount(minlength=S).double()
    # The rare draws together, where the law of chi^2 does not hold for each.
    rare = n * weights < 5
    expected, observed = (torch.cat([x[~rare], x[rare].sum().reshape(1)]) for x in (n * weights, counts))
    kept = expected > 0
    statistic = ((observed - expected)[kept].square() / expected[kept]).sum().item()
    assert scipy.stats.chi2.sf(statistic, int(kept.sum()) - 1) > 1e-6 and observed[~kept].sum() == 0
    assert model.process.weights.max() > 1.5 * model.process.weights.min()


@pytest.mark.parametrize("name", JOINT)
def test_thompson_sampling(name: str) -> None:
    model = fitted(name)
    torch.manual_seed(0)
    optimised(PathwiseThompsonSampling(model), 3, options={"maxiter": 5})
    chosen = MaxPosteriorSampling(model, replacement=False)(points(30), num_samples=4)
    assert len(chosen.unique(dim=0)) == 4


@pytest.mark.parametrize("name", ALL)
def test_a_smaller_recipe_is_still_its_recipe(name: str) -> None:
    """The samplers above are those BoTorch chooses."""
    chosen = get_sampler(fitted(name).posterior(points(1)), torch.Size([8]), seed=0)
    assert isinstance(chosen, DrawsSampler) == (name in DRAWS)
    assert small(name).input_transform == probnn.get_surrogate(name).input_transform
