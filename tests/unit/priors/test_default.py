"""The default network prior: what it builds, its functions on a box, and bad input."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import probnn
from probnn.diagnostics import function_statistics
from probnn.errors import DomainError
from probnn.priors import BNNPrior, HierarchicalWeights, NormalWeights


def statistics(recipe, d, seed, num_functions=1000):
    bounds = torch.tensor([[-1.0] * d, [1.0] * d])
    return function_statistics(recipe(d, 1), bounds, num_functions=num_functions, num_points=64, seed=seed)


def test_it_builds_a_hierarchical_network():
    process = BNNPrior(hidden=(20, 10), activation="sin")(3, 2)
    assert isinstance(process, probnn.BayesianNetwork)
    assert process.network == probnn.MLP(input_dim=3, hidden=(20, 10), output_dim=2, activation="sin")
    assert isinstance(process.weight_prior, HierarchicalWeights)
    assert process.layout.blocks[-1].shape == (6,)
    assert BNNPrior()(3).output_dim == 1


def test_every_setting_arrives():
    law = BNNPrior(hidden=(5,), weight_scale=(3.0, 2.0), bias_scale=1.0, spread=0.2).weight_prior()
    assert law == HierarchicalWeights((3.0, 2.0), 1.0, spread=0.2)
    fixed = BNNPrior(hidden=(5,), weight_scale=2.0, bias_scale=0.5, scale_prior=None).weight_prior()
    assert fixed == NormalWeights(2.0, 0.5)
    assert BNNPrior(scale_prior="half_cauchy").weight_prior().scale_prior == "half_cauchy"
    assert BNNPrior(hidden=(5,), spread=(0.1, 0.2, 0.3, 0.4))(2, 1).sample(torch.zeros(1, 2)).isfinite().all()


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4), (5, 4, 3, 2)])
@pytest.mark.parametrize("activation", ["tanh", "relu", "erf", "gelu", "silu", "sin"])
def test_every_depth_has_default_scales(hidden, activation):
    f = BNNPrior(hidden=hidden, activation=activation)(2, 3).sample(torch.zeros(4, 2), (2,))
    assert f.shape == (2, 4, 3) and f.isfinite().all()


def test_recipes_are_values(tmp_path):
    recipe = BNNPrior(hidden=[50, 50], weight_scale=[4, 2, 1])
    same = BNNPrior(hidden=(50, 50), weight_scale=(4.0, 2.0, 1.0))
    assert recipe == same and hash(recipe) == hash(same) and recipe != BNNPrior()
    assert pickle.loads(pickle.dumps(recipe)) == copy.deepcopy(recipe) == recipe
    probnn.save(recipe, tmp_path / "recipe.safetensors")
    assert probnn.load(tmp_path / "recipe.safetensors") == recipe
    with pytest.raises(AttributeError):
        recipe.hidden = (3,)


@pytest.mark.parametrize(
    ("activation", "d"), [("tanh", 1), ("tanh", 2), ("tanh", 6), ("tanh", 20), ("sin", 1), ("sin", 20), ("erf", 2)]
)
def test_functions_are_of_order_one_and_vary_within_the_box(activation, d, seed):
    """Bounds stand five standard errors from the figures of many functions."""
    s = statistics(BNNPrior(activation=activation), d, seed)
    assert 0.8 < s.total_sd < 1.45
    assert s.within_share.sqrt() > 0.5
    if d >= 6:
        assert s.within_share > 0.4
    assert s.axis_sd > 0.2
    assert s.turns > {1: 2.5, 2: 2.0, 6: 1.2, 20: 0.7}[d]


def test_scale_one_everywhere_is_nearly_constant(seed):
    """Why the defaults are what they are: the usual scales fail the same check by far."""
    s = statistics(BNNPrior(weight_scale=1.0, bias_scale=1.0, scale_prior=None), 6, seed)
    assert s.within_share.sqrt() < 0.25 and s.axis_sd < 0.12 and s.turns < 0.7


@pytest.mark.parametrize("hidden", [(), (50,), (50, 50, 50), (20, 20), (100, 100)])
def test_the_total_hardly_depends_on_depth_and_width(hidden, seed):
    assert 0.75 < statistics(BNNPrior(hidden=hidden), 4, seed).total_sd < 1.65


@pytest.mark.parametrize(
    ("activation", "hidden"), [("relu", (50,)), ("relu", (50, 50, 50)), ("gelu", (50, 50)), ("silu", (50, 50))]
)
def test_unbounded_activations_have_a_total_near_one(hidden, activation, seed):
    assert 0.6 < statistics(BNNPrior(hidden=hidden, activation=activation), 4, seed).total_sd < 1.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": (0,)}, "hidden must be an integer >= 1"),
        ({"hidden": 50}, "hidden must be a tuple"),
        ({"activation": "cos"}, "activation must be one of"),
        ({"weight_scale": (1.0, 2.0)}, "weight_scale has 2 values but the 3 layers of the network need 3"),
        ({"bias_scale": -1.0}, "bias_scale must be positive"),
        ({"weight_scale": torch.ones(3)}, "weight_scale must be numbers"),
        ({"spread": (0.1, 0.2, 0.3)}, "spread has 3 values but the 3 layers of the network need 6"),
        ({"spread": 0.0}, "spread must be positive"),
        ({"scale_prior": None, "spread": 0.5}, "spread belongs to scale_prior='log_normal'"),
        ({"scale_prior": "half_cauchy", "spread": 0.5}, "spread belongs to scale_prior='log_normal'"),
        ({"scale_prior": "cauchy"}, "scale_prior must be one of"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(DomainError, match=message):
        BNNPrior(**options)


@pytest.mark.parametrize("arguments", [(0, 1), (2, 0), (2.0, 1)])
def test_bad_dimensions_are_refused(arguments):
    with pytest.raises(DomainError, match="must be an integer >= 1"):
        BNNPrior()(*arguments)
