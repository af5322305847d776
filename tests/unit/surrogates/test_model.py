"""ProcessModel: shapes, units, noise, outcomes, devices of the BoTorch interface."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from botorch.acquisition import qExpectedImprovement, qSimpleRegret
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.acquisition.objective import (
    ExpectationPosteriorTransform,
    LinearMCObjective,
    ScalarizedPosteriorTransform,
)
from botorch.models import SingleTaskGP
from botorch.models.transforms import ChainedOutcomeTransform, Log, Standardize
from botorch.models.transforms.input import InputPerturbation
from botorch.posteriors import GPyTorchPosterior
from botorch.posteriors.transformed import TransformedPosterior
from botorch.utils.datasets import SupervisedDataset
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal

import probnn
from probnn import likelihoods
from probnn.errors import DomainError, NonFiniteError, ShapeError, UnsupportedError
from probnn.predictive import DrawsPosterior
from probnn.surrogates import _posteriors
from tests.unit.surrogates.toy import DOUBLE, Marginals, draws, model, points, transforms


def test_parametric_processes_are_frozen_once() -> None:
    process = draws(64)
    assert probnn.ProcessModel(process).process is process
    assert probnn.ProcessModel(process, num_draws=16).process.num_draws == 16
    prior = process.base
    frozen = probnn.ProcessModel(prior, num_draws=16)
    assert isinstance(frozen.process, probnn.EmpiricalProcess) and frozen.source is prior
    X = points(3)
    assert torch.equal(frozen.posterior(X).values, probnn.ProcessModel(prior, num_draws=16).posterior(X).values)


@pytest.mark.parametrize("lead", [(), (3,), (4, 5)])
@pytest.mark.parametrize("m", [1, 2])
def test_posterior_is_that_of_the_process_in_other_units(lead: tuple[int, ...], m: int) -> None:
    process, units = draws(m=m), transforms(m)
    X = points(*lead, 3)
    inside = (X - X.new_tensor([0.5, 0.75])) / X.new_tensor([3.0, 1.5])
    outcome = units["outcome_transform"]
    scaled = probnn.ProcessModel(process, **units)
    for noise in (False, True):
        expected = process.predict(inside, observation_noise=noise)
        got = scaled.posterior(X, observation_noise=noise)
        assert got.mean.shape == (*lead, 3, m)
        torch.testing.assert_close(got.mean, outcome.means + outcome.stdvs * expected.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(got.variance, outcome.stdvs**2 * expected.variance, rtol=1e-12, atol=0)
    assert got.rsample(torch.Size([3, 2])).shape == (3, 2, *lead, 3, m)


def test_given_noise_is_added_in_transformed_units() -> None:
    scaled, X = model(m=2, scaled=True), points(4, 3)
    variance = torch.tensor([[0.3, 0.7]], dtype=DOUBLE)
    bare = scaled.posterior(X).variance
    for shape in ((1, 2), (3, 2), (4, 1, 2)):
        noisy = scaled.posterior(X, observation_noise=variance.expand(*shape)).variance
        expected = bare + scaled.outcome_transform.stdvs**2 * variance
        torch.testing.assert_close(noisy, expected, rtol=1e-12, atol=0)
    for wrong in (variance[0], variance.expand(5, 2), variance[:, :1].expand(1, 3)):
        with pytest.raises(ShapeError, match="observation_noise"):
            scaled.posterior(X, observation_noise=wrong)
    with pytest.raises(DomainError, match="positive"):
        scaled.posterior(X, observation_noise=-variance)
    with pytest.raises(DomainError, match="float32"):
        scaled.posterior(X, observation_noise=variance.float())
    with pytest.raises(DomainError, match="bool or a tensor"):
        scaled.posterior(X, observation_noise=0.1)


def test_outputs_are_columns_of_the_same_draws() -> None:
    scaled, X = model(m=3, scaled=True), points(4, 2)
    values = scaled.posterior(X).values
    assert torch.equal(scaled.posterior(X, output_indices=[2, 0]).values, values[..., [2, 0]])
    subset = scaled.subset_output([2, 0])
    assert subset.num_outputs == 2 and torch.equal(subset.posterior(X).values, values[..., [2, 0]])
    assert torch.equal(subset.posterior(X, output_indices=[-1]).values, values[..., [0]])
    assert torch.equal(subset.subset_output([1]).posterior(X).values, values[..., [0]])
    noisy = subset.posterior(X, observation_noise=True)
    assert torch.equal(noisy.noise_std, scaled.posterior(X, observation_noise=True).noise_std[..., [2, 0]])
    for wrong in ([], [3], [-4], [True], [0.5]):
        with pytest.raises(DomainError, match="-3 to 2"):
            scaled.subset_output(wrong)
        with pytest.raises(DomainError, match="-3 to 2"):
            scaled.posterior(X, output_indices=wrong)


@pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.NumericsWarning")  # of plain qEI
def test_scalarised_posterior_equals_the_objective() -> None:
    pair, X = model(m=2, scaled=True), points(5, 3, seed=1)
    weights = torch.tensor([0.3, -1.2], dtype=DOUBLE)
    best = pair.posterior(X).mean @ weights
    transform = ScalarizedPosteriorTransform(weights, offset=0.0)
    for acquisition in (qExpectedImprovement, qLogExpectedImprovement):
        sampler = probnn.predictive.DrawsSampler(torch.Size([128]), seed=3)
        a = acquisition(pair, best_f=best.mean(), posterior_transform=transform, sampler=sampler)
        b = acquisition(pair, best_f=best.mean(), objective=LinearMCObjective(weights), sampler=sampler)
        torch.testing.assert_close(a(X), b(X), rtol=1e-12, atol=1e-12)
    noise = pair.posterior(X, observation_noise=True, posterior_transform=transform)
    both = pair.posterior(X, observation_noise=True)
    own = (both.weights[:, None] * (both.noise_std.square() @ weights.square())).sum(-2)
    torch.testing.assert_close(
        noise.variance.squeeze(-1) - pair.posterior(X, posterior_transform=transform).variance.squeeze(-1), own
    )


def test_posterior_transforms_act_draw_by_draw() -> None:
    """The risk of a perturbed input: BoTorch's expectation over perturbations, exact for draws."""
    shift = torch.tensor([[0.0, 0.0], [0.05, 0.0], [0.0, 0.05]], dtype=DOUBLE)
    process = draws()
    robust = probnn.ProcessModel(process, input_transform=InputPerturbation(shift))
    X = points(4, 2)
    got = robust.posterior(X, posterior_transform=ExpectationPosteriorTransform(n_w=3)).values
    each = process.predict((X.unsqueeze(-2) + shift).flatten(-3, -2)).values
    torch.testing.assert_close(got, each.unflatten(-2, (2, 3)).mean(-2))
    with pytest.raises(UnsupportedError, match="observation_noise=False"):
        robust.posterior(X, observation_noise=True, posterior_transform=ExpectationPosteriorTransform(n_w=3))


def test_nonlinear_outcome_transforms_are_exact_without_noise() -> None:
    process, X = draws(), points(4, 2)
    log = probnn.ProcessModel(process, outcome_transform=Log())
    expected = DrawsPosterior(process.predict(X).values.exp(), process.log_weights)
    torch.testing.assert_close(log.posterior(X).mean, expected.mean)
    noisy = log.posterior(X, observation_noise=True)
    assert isinstance(noisy, TransformedPosterior) and (noisy.rsample(torch.Size([8])) > 0).all()
    standardize = transforms()["outcome_transform"]
    chained = probnn.ProcessModel(process, outcome_transform=ChainedOutcomeTransform(log=Log(), scale=standardize))
    inner = standardize.means + standardize.stdvs * process.predict(X).values
    torch.testing.assert_close(chained.posterior(X).values, inner.exp())


def test_conditioning_understands_nonlinear_transforms() -> None:
    process, X = draws(likelihood=likelihoods.Gaussian(noise=1.0)), points(2)
    Y = torch.tensor([[0.5], [2.0]], dtype=DOUBLE)
    log = probnn.ProcessModel(process, outcome_transform=Log()).condition_on_observations(X, Y)
    torch.testing.assert_close(log.process.log_weights, process.condition(X, Y.log()).log_weights)


def _normals() -> list[GPyTorchPosterior]:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(3, 6, 6, generator=generator, dtype=DOUBLE)
    mean, covariance = torch.randn(3, 3, 2, generator=generator, dtype=DOUBLE), A @ A.mT
    order = torch.arange(6).reshape(3, 2).T.flatten()  # point by point -> outcome by outcome
    moved = covariance[..., order, :][..., order]
    return [
        GPyTorchPosterior(MultitaskMultivariateNormal(mean, covariance)),
        GPyTorchPosterior(MultitaskMultivariateNormal(mean, moved, interleaved=False)),
    ]


def test_normal_posteriors_in_either_order() -> None:
    a, b = _normals()
    for first, second in (
        (_posteriors.select(a, [1]), _posteriors.select(b, [1])),
        (_posteriors.select(a, [1, 0]), _posteriors.select(b, [1, 0])),
        (_posteriors.with_noise(a, a.mean**2 + 1), _posteriors.with_noise(b, a.mean**2 + 1)),
    ):
        torch.testing.assert_close(first.mean, second.mean)
        torch.testing.assert_close(first.distribution.covariance_matrix, second.distribution.covariance_matrix)
    one = _posteriors.select(a, [1]).distribution
    assert type(one) is MultivariateNormal
    torch.testing.assert_close(one.covariance_matrix, a.distribution.covariance_matrix[..., 1::2, 1::2])
    noisy = _posteriors.with_noise(a, torch.tensor([[0.5, 2.0]], dtype=DOUBLE))
    torch.testing.assert_close(noisy.variance - a.variance, torch.tensor([0.5, 2.0], dtype=DOUBLE).expand(3, 3, 2))
    assert _posteriors.select(a, [0, 1]) is a


def test_marginal_processes_are_refused_jointly() -> None:
    scaled = probnn.ProcessModel(Marginals(), **transforms())
    X = points(4, 3)
    assert scaled.posterior(X).mean.shape == (4, 3, 1)
    outcome = scaled.outcome_transform
    inside = (X - X.new_tensor([0.5, 0.75])) / X.new_tensor([3.0, 1.5])
    torch.testing.assert_close(scaled.posterior(X).mean, outcome.means + outcome.stdvs * inside.sum(-1, keepdim=True))
    with pytest.raises(UnsupportedError, match="q = 3"):
        scaled.posterior(X).rsample()
    acquisition = qLogExpectedImprovement(scaled, best_f=4.0)
    assert acquisition(X[:, :1]).isfinite().all()
    with pytest.raises(UnsupportedError, match="joint=None"):
        acquisition(X)
    with pytest.raises(UnsupportedError, match="fit"):
        probnn.ProcessModel(Marginals()).condition_on_observations(points(2), points(2)[:, :1])


@pytest.mark.parametrize("scaled", [False, True])
def test_bad_inputs_are_named(scaled: bool) -> None:
    bad, X = model(m=2, scaled=scaled), points(4, 3)
    Y = torch.zeros(4, 3, 2, dtype=DOUBLE)
    with pytest.raises(DomainError, match=r"float64.*float32"):
        bad.posterior(X.float())
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        bad.posterior(X[0, 0])
    with pytest.raises(ShapeError, match=r"\(4, 3, 1\)"):
        bad.posterior(X[..., :1])
    with pytest.raises(NonFiniteError, match=r"\[0, 0, 0\]"):
        bad.posterior(X.index_fill(0, torch.tensor([0]), torch.nan))
    with pytest.raises(DomainError, match="list"):
        bad.posterior(X.tolist())
    with pytest.raises(ShapeError, match=r"\(4, 3, 1\)"):
        bad.condition_on_observations(X, Y[..., :1])
    with pytest.raises(ShapeError, match=r"\(4, 2, 2\)"):
        bad.condition_on_observations(X, Y[:, :2])
    with pytest.raises(ShapeError, match=r"\(3, 3, 2\)"):
        bad.condition_on_observations(X, Y[:3])
    with pytest.raises(DomainError, match="positive"):
        bad.condition_on_observations(X, Y, noise=Y)
    with pytest.raises(UnsupportedError, match="subset_output"):
        bad.subset_output([0]).condition_on_observations(X, Y)
    if scaled:
        assert bad.input_transform._coefficient.dtype == DOUBLE  # refused before the transform was cast


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"process": 3}, "StochasticProcess, got a int"),
        ({"num_draws": 0}, "num_draws must be an integer >= 1"),
        ({"input_transform": "unit"}, "input_transform must be"),
        ({"outcome_transform": Standardize}, "outcome_transform must be"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DomainError, match=words):
        probnn.ProcessModel(**{"process": draws(8), **options})


def test_other_dtypes() -> None:
    scaled, X = model(scaled=True), points(4, 2)
    mean = scaled.posterior(X).mean
    scaled.float()
    assert scaled.posterior(X.float()).mean.dtype == torch.float32
    torch.testing.assert_close(scaled.posterior(X.float()).mean.double(), mean, rtol=1e-4, atol=1e-4)
    with pytest.raises(DomainError, match=r"float32.*float64"):
        scaled.posterior(X)
    assert scaled.double().posterior(X).mean.dtype == DOUBLE


def test_train_and_eval_change_nothing() -> None:
    scaled, X = model(scaled=True), points(4, 2)
    values = scaled.posterior(X).values
    means = scaled.outcome_transform.means.clone()
    assert torch.equal(scaled.train().posterior(X).values, values)
    far = torch.full((1, 1), 100.0, dtype=DOUBLE)
    conditioned = scaled.train().condition_on_observations(X[0, :1], far, noise=far**2)
    assert torch.equal(conditioned.outcome_transform.means, means) and torch.equal(scaled.posterior(X).values, values)
    assert torch.equal(scaled.train().eval().posterior(X).values, values)


def test_what_a_gaussian_process_model_has_is_missing_with_advice() -> None:
    bare = model()
    for name in ("train_inputs", "train_targets", "likelihood"):
        assert not hasattr(bare, name)
        with pytest.raises(UnsupportedError, match="MaxValueEntropy or ExpectedInformationGain"):
            getattr(bare, name)
    with pytest.raises(AttributeError, match="no_such_thing"):
        bare.no_such_thing  # noqa: B018
    assert not bare._is_ensemble and not bare._is_fully_bayesian


def test_predictions_of_classes() -> None:
    classes = probnn.ProcessModel(draws(likelihood=likelihoods.Categorical(3)))
    X = points(4, 2)
    posterior = classes.posterior(X)
    assert classes.num_outputs == 3 and posterior.mean.shape == (4, 2, 3)
    torch.testing.assert_close(posterior.mean.sum(-1), torch.ones(4, 2, dtype=DOUBLE))
    sampler = probnn.predictive.DrawsSampler(torch.Size([4]), seed=0)
    with pytest.raises(UnsupportedError, match="Categorical"):
        classes.fantasize(X, sampler)
    with pytest.raises(UnsupportedError, match="Bernoulli"):
        probnn.ProcessModel(draws(likelihood=likelihoods.Bernoulli())).fantasize(X, sampler)
    Y = torch.tensor([[0.0], [2.0]], dtype=DOUBLE)
    assert classes.condition_on_observations(X[0], Y).process.ess < classes.process.ess


def test_construct_inputs_makes_the_model() -> None:
    X = points(6)
    names = {"feature_names": ["a", "b"], "outcome_names": ["y"]}
    data = SupervisedDataset(X, X.sum(-1, keepdim=True), **names)
    inputs = probnn.ProcessModel.construct_inputs(data, surrogate="laplace", seed=1)
    direct = probnn.get_surrogate("laplace").fit(data.X, data.Y, seed=1)
    torch.testing.assert_close(probnn.ProcessModel(**inputs).posterior(X).mean, direct.posterior(X).mean)
    with pytest.raises(DomainError, match="SupervisedDataset"):
        probnn.ProcessModel.construct_inputs((X, X))


def test_beside_botorch_models_in_a_list() -> None:
    from botorch.models import ModelList

    X = points(6)
    gp = SingleTaskGP(X, X.sum(-1, keepdim=True))
    both = ModelList(model(), gp)
    posterior = both.posterior(points(4, 2), observation_noise=True)
    assert posterior.mean.shape == (4, 2, 2) and both.batch_shape == torch.Size()
    value = qSimpleRegret(both, objective=LinearMCObjective(torch.ones(2, dtype=DOUBLE)))(points(4, 2))
    assert value.shape == (4,)
    assert both.subset_output([0]) is both.models[0]


def test_salts_tell_models_apart_and_stay() -> None:
    a, b, X = model(seed=1), model(seed=2), points(1)
    assert a.posterior(X).salt != b.posterior(X).salt
    conditioned = a.condition_on_observations(X, X[:, :1])
    assert conditioned.posterior(X).salt == a.posterior(X).salt == model(seed=1).posterior(X).salt
    assert model(m=2).subset_output([1]).posterior(X).salt == model(m=2).posterior(X).salt
