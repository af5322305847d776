"""Measurement sets: what they hold, how often they change, what they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from probnn import random as rnd
from probnn.errors import DomainError, NonFiniteError, ShapeError
from probnn.priors import Grid, Points, TrainingInputs

LIKE = torch.empty(0, dtype=torch.double)


def test_grid() -> None:
    assert Grid(-1, 3, 5).points(LIKE).squeeze(-1).tolist() == [-1, 0, 1, 2, 3]
    found = Grid((0, -1), (1, 1), (2, 3)).points(LIKE).tolist()
    assert found == [[0, -1], [0, 0], [0, 1], [1, -1], [1, 0], [1, 1]]
    assert Grid(0, 2, (1, 1, 1)).points(LIKE).tolist() == [[1, 1, 1]]
    assert Grid(0, 1, 4).fixed and Grid(0, 1, 4) == Grid((0.0,), (1.0,), (4,))


def test_training_inputs_mix_data_and_box() -> None:
    X = 10 + torch.arange(40, dtype=torch.double).reshape(20, 2)
    bounds = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.double)
    inputs, g = TrainingInputs(X, bounds, size=20), rnd.generator_from(0)
    first, second = inputs.points(LIKE, g), inputs.points(LIKE, g)
    for points in (first, second):
        assert points.shape == (20, 2)
        rows = {tuple(row) for row in points[:14].tolist()}
        assert len(rows) == 14 and rows <= {tuple(row) for row in X.tolist()}  # without replacement
        assert ((points[14:] >= bounds[0]) & (points[14:] <= bounds[1])).all()
    assert not torch.equal(first, second) and not inputs.fixed
    few = TrainingInputs(X[:3], size=20).points(LIKE, g)  # all of them, and more of the box around them
    assert len(few) == 20 and {tuple(row) for row in X[:3].tolist()} <= {tuple(row) for row in few.tolist()}
    assert ((few >= X[0]) & (few <= X[2])).all()
    assert TrainingInputs(X, fraction=0.0, size=7).points(LIKE, g).shape == (7, 2)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Grid(1, 1, 3), DomainError),
        (lambda: Grid(0, math.inf, 3), DomainError),
        (lambda: Grid(0, 1, 0), DomainError),
        (lambda: Grid((0, 0), (1, 1, 1), 3), DomainError),
        (lambda: Grid((), (), ()), DomainError),
        (lambda: Grid(0, 1, (100, 100, 100)), DomainError),
        (lambda: Points(torch.zeros(0, 1)), ShapeError),
        (lambda: Points(torch.tensor([[math.nan]])), NonFiniteError),
        (lambda: Points(torch.zeros(3)), ShapeError),
        (lambda: TrainingInputs(torch.zeros(0, 2)), ShapeError),
        (lambda: TrainingInputs(torch.tensor([[math.inf]])), NonFiniteError),
        (lambda: TrainingInputs(torch.rand(3, 2), torch.zeros(2, 3)), ShapeError),
        (lambda: TrainingInputs(torch.rand(3, 1), torch.tensor([[1.0], [0.0]])), DomainError),
        (lambda: TrainingInputs(torch.rand(3, 1), fraction=1.5), DomainError),
        (lambda: TrainingInputs(torch.rand(3, 1), size=0), DomainError),
    ],
)
def test_bad_input(make, error) -> None:
    with pytest.raises(error):
        make()
