"""Searching spaces without a scale: every grid and category in turn."""

from __future__ import annotations

import pytest
import torch
from botorch.acquisition import AcquisitionFunction
from torch import Tensor

from probnn.optimization import Categorical, Integer, Space
from probnn.optimization.search import NUM_LOCAL, NUM_RAW, NUM_STARTS, _Search, best_setting


class Additive(AcquisitionFunction):
    """A sum of one value a choice, which counts its evaluations."""

    def __init__(self, table: Tensor):
        torch.nn.Module.__init__(self)
        self.table, self.count = table, 0

    def forward(self, X: Tensor) -> Tensor:
        self.count += X.shape[0]
        index = X.squeeze(-2).round().long()
        return self.table.gather(1, index.mT).sum(0)


def test_many_categories(seed: int) -> None:
    """The best of 20^10 settings is found with few evaluations where parameters do not interact."""
    table = torch.rand(10, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    space = Space(**{f"c{i}": Categorical([f"v{j}" for j in range(20)]) for i in range(10)})
    acquisition = Additive(table)
    found = best_setting(acquisition, space, [], set(), seed=seed)
    assert found == {f"c{i}": f"v{int(table[i].argmax())}" for i in range(10)}
    # Two rounds of 190 for every start, and one around what they found.
    assert acquisition.count <= NUM_RAW + NUM_LOCAL + (2 * NUM_STARTS + 4) * 190
    taken = {tuple(found.values())}
    second = best_setting(Additive(table), space, [], taken, seed=seed)
    gaps = table.topk(2).values
    assert second is not None and sum(second[k] != found[k] for k in found) == 1
    at = torch.tensor([[int(v[1:])] for v in second.values()])
    assert table.gather(1, at).sum() == pytest.approx(float(gaps[:, 0].sum() - (gaps[:, 0] - gaps[:, 1]).min()))


def test_long_grids_move_step_by_step(seed: int) -> None:
    """Values that are kept, and grids longer than what is tried at once."""

    class Peak(Additive):
        def forward(self, X: Tensor) -> Tensor:
            return -(X.squeeze(-2) - centre).square().sum(-1)

    space = Space(a=Integer(0, 150), b=Integer(0, 10), kind=Categorical([True, 1, "x"]))
    centre = space.coordinates({"a": 71, "b": 3, "kind": 1})
    best = best_setting(Peak(centre), space, [], set(), seed=seed)
    assert best == {"a": 71, "b": 3, "kind": 1} and best["kind"] is not True
    kept = best_setting(Peak(centre), space, [], set(), fixed={"b": 9, "kind": True}, seed=seed)
    assert kept == {"a": 71, "b": 9, "kind": True} and kept["kind"] is True


def test_coordinates_are_those_of_the_space() -> None:
    space = Space(a=Integer(1, 1000, log=True), kind=Categorical([True, 1, "x"]), low=Categorical([3, 5], ordered=True))
    search = _Search(Additive(torch.zeros(1, 1)), space, {}, 0)
    for values in ({"a": 10, "kind": True, "low": 5}, {"a": 10, "kind": 1, "low": 3}, {"a": 9, "kind": "x", "low": 5}):
        assert search._coordinates(values) == space.coordinates(values).tolist()
