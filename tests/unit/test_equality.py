"""Parts that hold tensors are compared and hashed by value."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import probnn
from probnn import likelihoods, priors
from probnn.surrogates import Inferred, Surrogate, register_surrogate


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


MAKERS: dict[str, Any] = {
    "likelihood": lambda x: likelihoods.Gaussian(noise=x),
    "weight prior": lambda x: priors.NormalWeights(weight_scale=x),
    "hyper-prior": lambda x: priors.Gamma(x),
    "recipe": lambda x: Surrogate(Inferred(priors.BNNPrior(), likelihoods.Gaussian(noise=x), probnn.Laplace())),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_parts_with_tensors_are_compared_by_value(make: Any) -> None:
    part = make(tensor(0.1, 0.2))
    assert part == make(tensor(0.1, 0.2)) and hash(part) == hash(make(tensor(0.1, 0.2)))
    for other in (tensor(0.1, 0.3), tensor(0.1), tensor(0.1, 0.2).unsqueeze(0), tensor(0.1, 0.2).float(), 0.1):
        assert part != make(other)
    assert make(0.1) == make(0.1) and hash(make(0.1)) == hash(make(0.1)) and make(0.1) != make(0.2)
    assert part != "a string"
    assert len({part, make(tensor(0.1, 0.2)), make(0.1)}) == 2


def test_kinds_are_told_apart() -> None:
    assert likelihoods.Gaussian(noise=0.1) != likelihoods.StudentT(noise=0.1)
    assert likelihoods.Bernoulli() == likelihoods.Bernoulli() != likelihoods.Poisson()


def test_a_subclass_keeps_an_equality_of_its_own() -> None:
    @dataclasses.dataclass(frozen=True)
    class Odd(likelihoods.Bernoulli):
        name: str = ""

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 1

    @dataclasses.dataclass(frozen=True)
    class Named(likelihoods.Bernoulli):
        name: str = ""

    assert Odd("a") == Odd("b") and hash(Odd("a")) == 1
    assert Named("a") == Named("a") != Named("b") and Named("a") != likelihoods.Bernoulli()


def test_a_recipe_with_tensors_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from probnn.surrogates import recipe

    monkeypatch.setattr(recipe, "_recipes", dict(recipe._recipes))
    for _ in range(2):
        register_surrogate("two noises", MAKERS["recipe"](tensor(0.1, 0.2)))
    with pytest.raises(probnn.errors.DomainError, match="another recipe"):
        register_surrogate("two noises", MAKERS["recipe"](tensor(0.1, 0.3)))


def test_what_happened_in_a_fit_is_not_compared() -> None:
    info = probnn.inference.FitInfo(trace={"loss": tensor(1.0, 2.0)})
    assert info == info and info != dataclasses.replace(info) and isinstance(hash(info), int)
