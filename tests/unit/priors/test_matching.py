"""Matching: known scales are found, every objective helps, reports are honest, bad input is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import gpytorch
import matplotlib.pyplot as plt
import pytest
import torch

import probnn
from probnn import priors
from probnn import random as rnd
from probnn.errors import ConvergenceError, DomainError, NonFiniteError, ShapeError, UnsupportedError
from probnn.priors import (
    Grid,
    HierarchicalWeights,
    InverseGammaWeights,
    LaplaceWeights,
    NormalWeights,
    StudentTWeights,
    Wasserstein,
    matching_stages,
)
from probnn.priors.critic import Critic
from probnn.priors.tuning import Coordinates, Problem

DOUBLE = torch.double
GRID = Grid(-2, 2, 12)


@pytest.fixture(autouse=True)
def short_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probnn.priors.matching.NUM_EVALUATIONS", 800)


def network(prior=None, **options) -> probnn.BayesianNetwork:
    net = probnn.MLP(**{"input_dim": 1, "hidden": (12,), **options})
    return probnn.BayesianNetwork(net, prior or NormalWeights(), dtype=DOUBLE)


def gaussian_process(lengthscale: float = 0.8, **options) -> probnn.GaussianProcess:
    kernel = gpytorch.kernels.RBFKernel()
    kernel.lengthscale = lengthscale
    return probnn.GaussianProcess(kernel.double(), **{"input_dim": 1, **options})


def test_known_scales_are_recovered(seed: int) -> None:
    """The target is a network of the same kind: the law of its functions is found, by draws alone."""
    true = NormalWeights((1.5, 1.0, 0.8), (0.7, 0.3, 0.2))
    target = network(true, hidden=(20, 20))
    start = network(hidden=(20, 20))
    match = probnn.match_prior(start, target, Grid(-3, 3, 20), "energy", seed=seed)
    X = Grid(-3, 3, 20).points(torch.empty(0, dtype=DOUBLE))
    wanted, before, after = (priors.wide_covariance(p, X) for p in (target, start, match.prior))
    assert (before - wanted).norm() / wanted.norm() > 0.5
    assert (after - wanted).norm() / wanted.norm() < 0.1
    # The estimate of the floor is zero on average, so a multiple of it bounds nothing: a share of the way does.
    assert match.distances["energy"] < 0.03 * match.untuned["energy"]


def test_a_wide_network_finds_a_gaussian_process_of_its_own_kernel(seed: int) -> None:
    """Closed form against closed form: sin units with one scale reproduce an RBF kernel up to a constant."""
    start = network(hidden=(50,), activation="sin")
    match = probnn.match_prior(start, gaussian_process(), Grid(-2, 2, 20), "nngp", seed=seed)
    X = match.points
    assert match.history["nngp"][-1] < 0.1 * match.history["nngp"][0]
    wanted = torch.exp(-0.5 * (X - X.mT).square() / 0.64)
    before, after = ((priors.wide_covariance(p, X)[0] - wanted).norm() for p in (start, match.prior))
    assert after < 0.3 * before


@pytest.mark.parametrize(
    "objective",
    ["auto", "energy", "mmd", "sliced", "nngp", Wasserstein(inner_steps=20, hidden=20), Wasserstein(persistent=True)],
    ids=lambda x: x if isinstance(x, str) else "persistent" if x.persistent else "wasserstein",
)
def test_every_objective_brings_the_prior_nearer(objective, seed: int) -> None:
    start, steps = network(NormalWeights(0.3, 2.0)), 40
    match = probnn.match_prior(start, gaussian_process(), GRID, objective, num_steps=steps, num_draws=64, seed=seed)
    for name in ("energy", "sliced_w1", "marginal_w1"):
        assert match.distances[name] < 0.8 * match.untuned[name], name
    assert match.distances["moments"] < match.untuned["moments"]
    name = objective if isinstance(objective, str) else "wasserstein"
    stages = ["nngp", "energy"] if name == "auto" else [name]
    assert list(match.history) == stages and len(match.history[stages[-1]]) == steps
    assert match.start is start and type(match.prior.weight_prior) is NormalWeights
    assert start.weight_prior.weight_scale == 0.3  # untouched


def test_the_floor_is_the_target_against_itself(seed: int) -> None:
    target = gaussian_process()
    match = probnn.match_prior(network(), target, GRID, "nngp", num_steps=2, seed=seed)
    assert abs(match.floor["energy"]) < 0.05 < match.untuned["energy"]
    assert all(0 < match.floor[name] < match.untuned[name] for name in ("sliced_w1", "marginal_w1", "moments"))
    text = repr(match)
    assert "floor" in text and "marginal_w1" in text and "weight_scale" in text and "2 nngp" in text


def test_a_match_is_reproducible_and_leaves_the_global_stream_alone() -> None:
    state = torch.get_rng_state()
    options = {"num_steps": 5, "num_draws": 16}
    one, two = (probnn.match_prior(network(), gaussian_process(), GRID, "energy", seed=3, **options) for _ in range(2))
    shown = probnn.match_prior(network(), gaussian_process(), GRID, "energy", seed=3, progress=True, **options)
    other = probnn.match_prior(network(), gaussian_process(), GRID, "energy", seed=4, **options)
    assert one.prior.weight_prior == two.prior.weight_prior == shown.prior.weight_prior != other.prior.weight_prior
    assert one.distances == two.distances and torch.equal(one.history["energy"], two.history["energy"])
    assert torch.equal(state, torch.get_rng_state())


def test_channels_are_matched_together(seed: int) -> None:
    kernels = tuple(gaussian_process(length).kernel for length in (0.5, 2.0))
    target = probnn.GaussianProcess(kernels, input_dim=1)
    start = network(NormalWeights(0.3, 2.0), output_dim=2)
    for objective in ("auto", Wasserstein(inner_steps=30, hidden=20)):
        match = probnn.match_prior(start, target, Grid(-2, 2, 6), objective, num_steps=30, num_draws=64, seed=seed)
        assert match.distances["energy"] < match.untuned["energy"]


def test_one_scale_a_weight(seed: int) -> None:
    weights = NormalWeights(torch.full((24,), 0.3, dtype=DOUBLE), torch.full((13,), 2.0, dtype=DOUBLE))
    match = probnn.match_prior(network(weights), gaussian_process(), GRID, num_steps=20, num_draws=64, seed=seed)
    found = match.prior.weight_prior
    assert found.weight_scale.shape == (24,) and found.bias_scale.shape == (13,)
    assert match.distances["energy"] < match.untuned["energy"] and "24 values" in repr(match)


def test_random_scales_meet_random_length_scales(seed: int) -> None:
    target = gaussian_process(hyperprior={"lengthscale": priors.LogNormal(0.0, 0.5)})
    inputs = priors.TrainingInputs(GRID.points(torch.empty(0, dtype=DOUBLE)), size=8)
    start = network(HierarchicalWeights(0.3, 2.0, scale_prior="inverse_gamma"))
    match = probnn.match_prior(start, target, inputs, num_steps=20, num_draws=64, seed=seed)
    found = match.prior.weight_prior
    assert match.distances["energy"] < match.untuned["energy"]
    assert len(found.shape) == 4 and min(found.shape) > 0.5 and found.shape != (3.0,) * 4


def test_heavy_tails_are_for_bounded_kernels(seed: int) -> None:
    start = network(HierarchicalWeights(0.3, 2.0, scale_prior="half_cauchy"))
    match = probnn.match_prior(start, gaussian_process(), GRID, "mmd", num_steps=5, num_draws=32, seed=seed)
    assert set(match.distances.values()) == {math.inf}
    assert all(math.isfinite(value) for value in match.floor.values())
    # Students with two moments have none of order two; auto does without the closed form.
    match = probnn.match_prior(network(StudentTWeights(df=2.0)), gaussian_process(), GRID, num_steps=3, num_draws=8)
    assert list(match.history) == ["energy"] and match.untuned["moments"] == math.inf > match.untuned["energy"]
    df = match.prior.weight_prior.df
    assert df > 1 and math.isinf(match.distances["moments"]) == (df <= 2)


def test_what_a_matched_prior_is_for(tmp_path) -> None:
    """It is a prior like any other: it is saved, and inference takes it."""
    match = probnn.match_prior(network(), gaussian_process(), GRID, "nngp", num_steps=5)
    match.prior.save(str(tmp_path / "prior.safetensors"))
    assert probnn.load(str(tmp_path / "prior.safetensors")).weight_prior == match.prior.weight_prior


def test_draws_of_a_module(seed: int) -> None:
    """A network nobody knows the moments of: auto goes without."""
    module = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.ELU(), torch.nn.Linear(8, 1)).double()
    start = probnn.BayesianNetwork(probnn.ModuleNetwork(module, input_dim=1), NormalWeights(0.2, 2.0), dtype=DOUBLE)
    match = probnn.match_prior(start, gaussian_process(), GRID, num_steps=30, num_draws=64, seed=seed)
    assert list(match.history) == ["energy"] and match.distances["energy"] < match.untuned["energy"]


def test_gradient_of_draws() -> None:
    """That of the hand-written network, through the scales, against finite differences with the same seed."""
    process = network(hidden=(4, 3))
    problem = Problem(process, gaussian_process(), GRID, rnd.generator_from(0), 3)
    coordinates, X = Coordinates(process, 0.0), problem.points()

    def values(*raw):
        return problem.functions(coordinates.build(raw), X, 3, rnd.generator_from(1)).sin().sum()

    assert torch.autograd.gradcheck(values, [x.requires_grad_() for x in coordinates.start])


@pytest.mark.parametrize("objective", ["auto", "nngp", Wasserstein(persistent=True)])
def test_shrinkage_holds_the_scales(objective) -> None:
    """More of it, nearer to the given prior; so much that nothing else counts, and hardly anything moves."""

    def moved(shrinkage: float) -> float:
        start = network(NormalWeights(0.3, 2.0))
        match = probnn.match_prior(
            start, gaussian_process(), GRID, objective, num_steps=30, num_draws=32, shrinkage=shrinkage
        )
        # Where the prior as given was best it comes back as it was, one number for all layers.
        scales = torch.as_tensor(match.prior.weight_prior.weight_scale).expand(2)
        return (scales / 0.3).log().norm().item()

    free, fixed = moved(0.0), moved(1e4)
    assert free > 2 * fixed
    if isinstance(objective, str):  # steps of RMSprop have the length of its rate, however weak the pull
        assert free > 1.1 * moved(0.03) > 2 * fixed


def test_the_best_is_chosen_with_the_shrinkage_of_the_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances alike, the pull decides: in coordinates of order 1 a shape of 0.51 is far, in those of order 0 near."""
    start = network(HierarchicalWeights(scale_prior="inverse_gamma", shape=0.6, rate=2.0))
    near, far = (replace(start.weight_prior, shape=shape) for shape in (0.8, 0.51))  # excess .1, .3 and .01
    problem = Problem(start, gaussian_process(), GRID, rnd.generator_from(0), 8, start.weight_prior, 1.0)
    monkeypatch.setattr(matching_stages, "discrepancy", lambda *_: torch.zeros(()))
    monkeypatch.setattr(matching_stages, "HELD_OUT", 4)
    assert matching_stages.best(problem, "energy", [far, near]) is near
    assert matching_stages.best(problem, "mmd", [far, near]) is far


def test_bounded_units_leave_the_hidden_shapes_free(seed: int) -> None:
    start = network(InverseGammaWeights((0.8, 3.0), 1.0, 3.0, 1.0))
    for objective in ("nngp", "auto"):
        match = probnn.match_prior(start, gaussian_process(), GRID, objective, num_steps=5, num_draws=32, seed=seed)
        assert all(value < math.inf for value in (*match.distances.values(), *match.untuned.values()))
    bounds = Coordinates(start, 2.0).bounds
    assert bounds["shape"].tolist() == bounds["bias_shape"].tolist() == [0.0, 1.0] and bounds["scale"] == 0.0
    general = network(HierarchicalWeights(scale_prior="inverse_gamma", shape=torch.tensor([0.8, 2.0, 2.0, 2.0])))
    assert Coordinates(general, 2.0).bounds["shape"].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert Coordinates(network(start.weight_prior, activation="relu"), 0.0).bounds["shape"] == 0.0


def test_bounds_keep_moments_finite() -> None:
    process = network(HierarchicalWeights(scale_prior="inverse_gamma", shape=1.2), activation="relu")
    coordinates = Coordinates(process, 2.0)
    assert coordinates.bounds == {"weight_scale": 0.0, "bias_scale": 0.0, "shape": 1.0}
    pushed = [x - 50.0 for x in coordinates.start]
    assert coordinates.build(pushed).shape.min() >= 1.0
    same = coordinates.finish(coordinates.start)
    assert same.shape == pytest.approx((1.2,) * 4) and same.weight_scale == pytest.approx((1.0, 1.0))


def test_the_critic_finds_a_shift(seed: int) -> None:
    """W1 of N(0, I) and N(delta e1, I) is delta.

    A critic of slope s along the shift has the penalised dual s delta - penalty (s - 1)^2, at its largest for
    s = 1 + delta / (2 penalty): that much above delta is right.
    """
    delta, g = 2.0, rnd.generator_from(seed)
    x, y = (rnd.normal((500, 10, 1), generator=g, dtype=DOUBLE) for _ in range(2))
    y[:, 0] += delta
    critic = Critic(10, Wasserstein(threshold=0.0, inner_lr=0.05), g, torch.device("cpu"))
    for _ in range(200):
        critic.step(x, y)
    fresh = [rnd.normal((2000, 10, 1), generator=g, dtype=DOUBLE) for _ in range(2)]
    fresh[1][:, 0] += delta
    slope = 1 + delta / 20
    assert 0.7 * delta < critic.gap(*fresh).item() < slope * (delta + 5 * (2 / 2000) ** 0.5)
    assert 0.8 < critic.slopes(*fresh).mean().item() < 1.2


def test_the_critic_pays_for_slopes_on_one_side_or_both() -> None:
    """Between equal draws there is no gap to gain: a flat critic is pulled up to slope one, or left alone."""
    g = rnd.generator_from(0)
    x = rnd.normal((50, 3, 1), generator=g, dtype=DOUBLE)
    for one_sided in (False, True):
        critic = Critic(3, Wasserstein(one_sided=one_sided, hidden=50), g, torch.device("cpu"))
        with torch.no_grad():
            critic.parameters[-2].mul_(1e-3)
        assert critic.slopes(x, x).max() < 0.1
        assert (critic.step(x, x) == 0) == one_sided


def test_plot(tmp_path) -> None:
    match = probnn.match_prior(network(), gaussian_process(), GRID, "nngp", num_steps=3)
    axes = match.plot(tmp_path / "match.png", num_functions=3)
    assert (tmp_path / "match.png").stat().st_size > 10_000
    assert [len(one.lines) for one in axes] == [5, 5, 3]  # functions, and the target's band in the first two
    plane = probnn.match_prior(
        network(input_dim=2), gaussian_process(input_dim=2), Grid((0, 0), (1, 1), 3),
        "nngp", num_steps=2,
    )  # fmt: skip
    _, given = plt.subplots(1, 3)
    assert list(plane.plot(ax=given)) == list(given) and given[0].get_xlabel() == "first input"
    with pytest.raises(ShapeError):
        plane.plot(ax=given[:2])
    plt.close("all")


class Indefinite(gpytorch.kernels.Kernel):
    """No kernel at all."""

    def forward(self, x1, x2, diag=False, **params):
        value = x1 @ x2.mT
        return -value.diagonal(dim1=-2, dim2=-1) if diag else -value


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prior": gaussian_process()}, DomainError, "BayesianNetwork"),
        ({"target": 1.0}, DomainError, "StochasticProcess"),
        ({"target": gaussian_process(input_dim=2)}, ShapeError, "inputs and channels"),
        ({"target": gaussian_process(output_dim=2)}, ShapeError, "inputs and channels"),
        ({"target": probnn.GaussianProcess(gpytorch.kernels.RBFKernel(), input_dim=1)}, DomainError, "dtype"),
        (
            {"target": probnn.GaussianProcess(gpytorch.kernels.ScaleKernel(Indefinite()).double(), input_dim=1)},
            DomainError,
            r"ScaleKernel\(Indefinite\)",
        ),
        ({"measurement": Grid((0, 0), (1, 1), 3)}, ShapeError, "1 inputs"),
        ({"measurement": 3}, DomainError, "Grid"),
        ({"measurement": torch.zeros(0, 1, dtype=DOUBLE)}, ShapeError, "at least one point"),
        ({"measurement": torch.full((3, 1), math.nan, dtype=DOUBLE)}, NonFiniteError, "X"),
        ({"measurement": torch.zeros(3, 1, dtype=torch.float32)}, DomainError, "dtype"),
        ({"objective": "sinkhorn"}, DomainError, "objective"),
        ({"num_draws": 1}, DomainError, "num_draws"),
        ({"num_steps": 0}, DomainError, "num_steps"),
        ({"shrinkage": -1.0}, DomainError, "shrinkage"),
        ({"seed": -1}, DomainError, "seed"),
        ({"prior": network(LaplaceWeights()), "objective": "nngp"}, UnsupportedError, "LaplaceWeights"),
        ({"prior": network(HierarchicalWeights(scale_prior="half_cauchy"))}, DomainError, "order 1"),
        (
            {"prior": network(HierarchicalWeights(scale_prior="inverse_gamma", shape=0.9)), "objective": "nngp"},
            DomainError,
            "infinite variance",
        ),
        ({"prior": network(StudentTWeights(df=0.8)), "objective": "sliced"}, DomainError, "mmd"),
    ],
)
def test_bad_input(change, error, message: str) -> None:
    arguments = {"prior": network(), "target": gaussian_process(), "measurement": GRID, "objective": "energy"}
    with pytest.raises(error, match=message):
        probnn.match_prior(**{**arguments, **change})


def test_a_prior_without_hyper_parameters_is_refused() -> None:
    class Fixed(LaplaceWeights):
        def hyperparameters(self, network, order=0.0):
            return {}

    with pytest.raises(UnsupportedError, match="no hyper-parameters"):
        probnn.match_prior(network(Fixed()), gaussian_process(), GRID)


def test_an_objective_that_is_not_finite_stops_the_work() -> None:
    huge = replace(network(activation="relu", hidden=(5,) * 8), weight_prior=NormalWeights(1e40, scaling="none"))
    with pytest.raises(ConvergenceError, match="step 1") as caught:
        probnn.match_prior(huge, gaussian_process(), GRID, "mmd", num_steps=2, num_draws=4)
    assert isinstance(caught.value.partial, NormalWeights)


def test_settings_of_the_critic() -> None:
    assert Wasserstein().steps == 200 and Wasserstein().critic_lr == 0.02
    for bad in ({"inner_steps": 0}, {"lr": 0.0}, {"penalty": -1.0}, {"threshold": -0.1}, {"persistent": 1}):
        with pytest.raises(DomainError):
            Wasserstein(**bad)
