"""What a model holds survives copies, files and other interpreters."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from botorch.models.transforms.input import AffineInputTransform, InputStandardize, Normalize, Warp
from botorch.models.transforms.outcome import Log, Standardize
from torch import Tensor

import probnn
from probnn import likelihoods
from probnn.errors import DomainError, SerializationError, ShapeError
from probnn.surrogates import _state
from tests.unit.surrogates.toy import DOUBLE, draws, model, points


def _conditioned() -> probnn.ProcessModel:
    return model(m=2, scaled=True).condition_on_observations(points(3, 1), torch.full((3, 1, 2), 5.0, dtype=DOUBLE))


def _same(a: probnn.ProcessModel, b: probnn.ProcessModel, X: Tensor) -> None:
    p, q = (x.posterior(X, observation_noise=True) for x in (a, b))
    assert torch.equal(p.values, q.values) and torch.equal(p.log_weights, q.log_weights)
    assert torch.equal(p.noise_std, q.noise_std) and p.salt == q.salt
    assert a.batch_shape == b.batch_shape and a.num_outputs == b.num_outputs


@pytest.mark.parametrize("kind", ["fresh", "conditioned", "subset", "thinned"])
def test_copies_pickles_and_files(kind: str, tmp_path: Path) -> None:
    made = {
        "fresh": lambda: model(scaled=True),
        "conditioned": _conditioned,
        "subset": lambda: _conditioned().subset_output([1]),
        "thinned": lambda: probnn.ProcessModel(draws(64), num_draws=16),
    }[kind]()
    X = points(3, 2)
    _same(copy.deepcopy(made), made, X)
    _same(pickle.loads(pickle.dumps(made)), made, X)
    probnn.save(made, tmp_path / "model.safetensors")
    loaded = probnn.load(tmp_path / "model.safetensors")
    _same(loaded, made, X)
    assert loaded.source.num_draws == 64 and (loaded.source is loaded.process) == (made.source is made.process)


@pytest.mark.parametrize("kind", ["same", "conditioned", "thinned"])
def test_state_dict_makes_a_like_model_equal(kind: str) -> None:
    X = points(3, 2)
    if kind == "thinned":
        made, other = (probnn.ProcessModel(draws(64, seed=s), num_draws=16) for s in (0, 1))
    else:
        made = _conditioned() if kind == "conditioned" else model(m=2, scaled=True)
        other = model(m=2, scaled=True, seed=1)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))  # weights_only by default: no code in the file
    _same(other, made, X)


def test_state_dict_of_another_model_is_refused() -> None:
    with pytest.raises(ShapeError, match="theta"):
        model().load_state_dict(model(hidden=(5, 5)).state_dict())
    other = likelihoods.Gaussian(noise_median=torch.tensor(0.3, dtype=DOUBLE))  # a tensor where there is a number
    with pytest.raises(DomainError, match=r"another model.*likelihood\.noise_median"):
        model().load_state_dict(model(likelihood=other).state_dict())
    with pytest.raises(RuntimeError, match="extra_state"):
        model().load_state_dict({})


def test_state_of_modules_inside_a_process() -> None:
    """A Gaussian process holds its kernel as a torch module."""
    first, second = torch.nn.Linear(2, 1).double(), torch.nn.Linear(2, 1).double()
    state = dict(_state.tensors((first, {"a": torch.ones(2)}), "x"))
    assert sorted(state) == ["x.0.bias", "x.0.weight", "x.1.a"]
    module, rest = _state.with_tensors((second, {"a": torch.zeros(2)}), state, "x")
    assert torch.equal(module.weight, first.weight) and torch.equal(rest["a"], torch.ones(2))
    assert not torch.equal(second.weight, first.weight)


def _trained(transform: torch.nn.Module, x: Tensor) -> torch.nn.Module:
    transform(x)
    return transform.eval()


def test_transforms_come_back() -> None:
    X = points(5)
    width = torch.tensor([[2.0, 3.0]], dtype=DOUBLE)
    for transform in (
        _trained(Normalize(2), X),
        _trained(Normalize(2, indices=[1], center=0.0), X),
        _trained(InputStandardize(2), X),
        AffineInputTransform(2, width, 0.1 * width, reverse=True),
        _trained(Standardize(2), X),
        _trained(Standardize(2, outputs=[1]), X),
    ):
        config = _state.encode_transform("transform", transform)
        back = _state.decode_transform(config).eval()
        assert type(back) is type(transform)
        a, b = transform(X), back(X)
        pairs = zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]
        assert all(torch.equal(x, y) for x, y in pairs if x is not None)
        assert back.state_dict().keys() == transform.state_dict().keys()
    assert _state.decode_transform(_state.encode_transform("transform", None)) is None


def test_other_transforms_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SerializationError, match="outcome_transform is a .*Log"):
        probnn.save(probnn.ProcessModel(draws(8), outcome_transform=Log()), tmp_path / "file")
    warp = Warp(d=2, indices=[0, 1])
    with pytest.raises(SerializationError, match="input_transform is a .*Warp"):
        probnn.save(probnn.ProcessModel(draws(8), input_transform=warp), tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_optimisation_leaves_the_model_alone() -> None:
    from botorch.acquisition.logei import qLogExpectedImprovement
    from botorch.optim import optimize_acqf

    from tests.unit.surrogates.toy import BOX

    made = model(scaled=True)
    before = copy.deepcopy(made.state_dict())
    optimize_acqf(qLogExpectedImprovement(made, best_f=5.0), BOX, q=2, num_restarts=2, raw_samples=8)
    after = made.state_dict()
    assert after.keys() == before.keys() and not list(made.parameters())
    flat = {**before["_extra_state"]["tensors"], **{k: v for k, v in before.items() if k != "_extra_state"}}
    now = {**after["_extra_state"]["tensors"], **{k: v for k, v in after.items() if k != "_extra_state"}}
    assert all(torch.equal(flat[k], now[k]) and now[k].grad is None for k in flat)
