"""Sobol indices: known functions, draws of models, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import probnn
from probnn import priors
from probnn.errors import DomainError, NonFiniteError, ShapeError, UnsupportedError
from probnn.optimization import BayesianOptimization, Categorical, Fixed, Integer, Real, Space, Trial
from probnn.optimization.importance import FactorImportance, factor_importance, sobol_indices
from probnn.surrogates import ProcessModel

DOUBLE = torch.double
ANGLES = Space(a=Real(-math.pi, math.pi), b=Real(-math.pi, math.pi), c=Real(-math.pi, math.pi))


def ishigami(X: Tensor) -> Tensor:
    a, b, c = ((2 * X - 1) * math.pi).unbind(-1)
    return (a.sin() + 7 * b.sin() ** 2 + 0.1 * c**4 * a.sin())[None]


def replicated(function, space: Space, seed: int, num_points: int = 512) -> list[FactorImportance]:
    """The same with points of independent seeds, from which the error of one is known."""
    return [sobol_indices(function, space, num_points=num_points, seed=100 * seed + i) for i in range(24)]


def check(estimates: Tensor, expected: Tensor, bias: float = 0.0) -> None:
    """Within five standard errors of the mean of the replicates (and a bias of the ratio)."""
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert (error > 0).all() and ((estimates.mean(0) - expected).abs() <= 5 * error + bias).all()
    assert (error < 0.01).all()


def test_the_function_of_ishigami_and_homma(seed: int) -> None:
    # Variances in closed form (Ishigami and Homma, 1990) with coefficients 7 and .1.
    one, two = 0.5 * (1 + 0.1 * math.pi**4 / 5) ** 2, 7**2 / 8
    mixed = 0.1**2 * math.pi**8 * (1 / 18 - 1 / 50)
    V = one + two + mixed
    total = torch.tensor([(one + mixed) / V, two / V, mixed / V], dtype=DOUBLE)
    first = torch.tensor([one / V, two / V, 0.0], dtype=DOUBLE)
    assert torch.allclose(total, torch.tensor([0.5576, 0.4424, 0.2437], dtype=DOUBLE), atol=5e-5)
    found = replicated(ishigami, ANGLES, seed, num_points=2048)
    check(torch.stack([f.total[0] for f in found]), total, 1e-3)
    check(torch.stack([f.first[0] for f in found]), first, 1e-3)
    check(torch.stack([f.std for f in found]), torch.tensor([math.sqrt(V)], dtype=DOUBLE), 5e-3)


def test_a_sum_of_effects_has_no_interactions(seed: int) -> None:
    """Numbers, a grid, an ordered and an unordered category, each with the variance of a uniform choice."""
    space = Space(
        x=Real(0.1, 10, log=True),
        n=Integer(0, 3),
        grade=Categorical(["low", "mid", "high"], ordered=True),
        kind=Categorical(["p", "q", "r"]),
        site=Fixed("A"),
    )
    effect = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)

    def f(X: Tensor) -> Tensor:
        assert X.shape[-1] == 6 and set((3 * X[:, 1]).round(decimals=9).tolist()) == {0, 1, 2, 3}
        return (3 * X[:, 0] + 2 * X[:, 1] - X[:, 2] + X[:, 3:] @ effect)[None]

    V = torch.stack(
        [
            torch.tensor(9 / 12, dtype=DOUBLE),
            4 * torch.tensor([0, 1, 2, 3], dtype=DOUBLE).div(3).var(correction=0),
            torch.tensor([0, 0.5, 1], dtype=DOUBLE).var(correction=0),
            effect.var(correction=0),
        ]
    )
    found = replicated(f, space, seed)
    assert found[0].names == ("x", "n", "grade", "kind")
    for kind in ("first", "total"):
        check(torch.stack([getattr(one, kind)[0] for one in found]), V / V.sum(), 1e-3)


def test_a_product_interacts_and_what_is_idle_is_exactly_zero(seed: int) -> None:
    space = Space(a=Real(-1, 1), b=Real(-1, 1), idle=Real(0, 1))
    found = replicated(lambda X: ((2 * X[:, 0] - 1) * (2 * X[:, 1] - 1))[None], space, seed)
    total, first = torch.stack([f.total[0] for f in found]), torch.stack([f.first[0] for f in found])
    assert (total[:, 2] == 0).all() and (first[:, 2] == 0).all()
    check(total[:, :2], torch.ones(2, dtype=DOUBLE), 1e-3)
    check(first[:, :2], torch.zeros(2, dtype=DOUBLE), 1e-3)


def test_values_on_a_logarithmic_grid_are_nearest_to_log_uniform_numbers() -> None:
    space = Space(n=Integer(1, 100, log=True), x=Real(0, 1))
    seen: list[Tensor] = []

    def f(X: Tensor) -> Tensor:
        seen.append(X[:, 0])
        return X.sum(-1)[None]

    sobol_indices(f, space, num_points=1024)
    numbers = (100 ** seen[0]).round(decimals=6)
    assert (numbers == numbers.round()).all()
    assert float((numbers <= 10).double().mean()) == pytest.approx(math.log(10.5) / math.log(100), abs=0.02)


def test_a_constant_function_has_no_indices_and_affine_changes_do_not_matter() -> None:
    space = Space(a=Real(0, 1), b=Real(0, 1))

    def f(X: Tensor) -> Tensor:
        g = X[:, 0] + X[:, 0] * X[:, 1]
        return torch.stack([g, 1000 - 3 * g, torch.full_like(g, 0.1) + 0.2])

    found = sobol_indices(f, space)
    assert torch.allclose(found.total[0], found.total[1]) and torch.allclose(found.first[0], found.first[1])
    assert (found.total[2] == 0).all() and (found.first[2] == 0).all()
    assert torch.allclose(found.std[1], 3 * found.std[0])


def test_intervals_are_quantiles_over_functions() -> None:
    total = torch.linspace(0, 1, 101, dtype=DOUBLE)[:, None]
    found = FactorImportance(("a",), total, total, torch.ones(101))
    assert torch.allclose(found.intervals(0.8)[:, 0], torch.tensor([0.1, 0.5, 0.9], dtype=DOUBLE))


def test_draws_of_a_linear_network_have_the_indices_of_their_weights(seed: int) -> None:
    net = probnn.MLP(input_dim=3, hidden=())
    prior = probnn.BayesianNetwork(net, priors.NormalWeights(), dtype=DOUBLE)
    model = ProcessModel(prior, num_draws=16)
    space = Space(a=Real(0, 1), b=Real(0, 2), c=Real(5, 9))
    found = factor_importance(model, space, num_draws=40, num_points=2048, seed=seed)
    assert found.total.shape == (40, 3) and found.outcome == ""
    X = torch.eye(3, dtype=DOUBLE)
    process = model.process
    g = process._apply(process.theta.flatten(0, 1), torch.cat([X, torch.zeros(1, 3, dtype=DOUBLE)]))[..., 0]
    weight = g[:, :3] - g[:, 3:]
    exact = weight.square() / weight.square().sum(-1, keepdim=True)
    nearest = (found.total[:, None] - exact).abs().amax(-1).min(1)
    assert (nearest.values < 0.01).all() and len(nearest.indices.unique()) > 5
    spread = weight.square().sum(-1).div(12).sqrt()
    assert torch.allclose(found.std, spread[nearest.indices], rtol=0.01)


@pytest.mark.parametrize("surrogate", ["gp", "laplace"])
def test_an_optimisation_knows_which_parameter_matters_and_same_seed_same_answer(surrogate: str, seed: int) -> None:
    space = Space(x=Real(0, 1), kind=Categorical(["a", "b", "c"]))
    bo = BayesianOptimization(space, minimize="loss", surrogate=surrogate, seed=seed)
    for i in range(15):
        x, kind = (7 * i % 15) / 14, "abc"[i % 3]
        bo.trials.append(Trial(i, {"x": x, "kind": kind}, "user", "complete", {"loss": 4 * x + 0.5 * (kind == "b")}))
    before = torch.get_rng_state()
    found = factor_importance(bo, num_draws=24, num_points=64, seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.names == ("x", "kind") and found.outcome == "loss" and found.total.shape == (24, 2)
    low, middle, high = found.intervals()
    assert middle[0] > 0.8 and middle[1] < 0.2 and (low <= high).all()
    again = factor_importance(bo, num_draws=24, num_points=64, seed=seed)
    assert torch.equal(found.total, again.total) and torch.equal(found.std, again.std)
    # A slope of 4 over the unit interval, in the units of the data.
    assert float(found.std.median()) == pytest.approx(4 / math.sqrt(12), rel=0.2)


def test_bad_input_says_what_to_do() -> None:
    space = Space(x=Real(0, 1), y=Real(0, 1))
    model = ProcessModel(probnn.BayesianNetwork(probnn.MLP(input_dim=3), priors.NormalWeights(), dtype=DOUBLE))
    random = BayesianOptimization(space, maximize="z", surrogate="random")
    random.trials.append(Trial(0, {"x": 0.0, "y": 0.0}, "user", "complete", {"z": 1.0}))
    with pytest.raises(ShapeError, match="3 inputs and the space 2 features"):
        factor_importance(model, space)
    with pytest.raises(DomainError, match="needs space="):
        factor_importance(model)
    with pytest.raises(DomainError, match="leave space out"):
        factor_importance(random, space)
    with pytest.raises(DomainError, match="outcome must be one of 'z'"):
        factor_importance(random, outcome="w")
    with pytest.raises(UnsupportedError, match="random search has no model"):
        factor_importance(random)
    with pytest.raises(DomainError, match="got a int"):
        factor_importance(3)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"must return shape \(S, 8\)"):
        sobol_indices(lambda X: X, space, num_points=8)
    with pytest.raises(NonFiniteError, match="values of the function"):
        sobol_indices(lambda X: X[:, :1].T / 0, space, num_points=8)
    with pytest.raises(DomainError, match="num_points"):
        sobol_indices(lambda X: X[:, :1].T, space, num_points=1)


def test_one_of_several_outcomes_is_taken_by_subset_output() -> None:
    net = probnn.BayesianNetwork(probnn.MLP(input_dim=2, hidden=(), output_dim=2), priors.NormalWeights(), dtype=DOUBLE)
    model = ProcessModel(net, num_draws=8)
    space = Space(a=Real(0, 1), b=Real(0, 1))
    with pytest.raises(DomainError, match="one outcome, got 2; use model.subset_output"):
        factor_importance(model, space)
    one, two = (factor_importance(model.subset_output([i]), space, num_draws=8, num_points=64) for i in (0, 1))
    assert one.total.shape == two.total.shape == (8, 2) and not torch.allclose(one.std, two.std)
