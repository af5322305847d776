"""Truths of the tests of convergence studies."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from probnn import moe
from probnn.studies._truths import record_of_measure

SHIPPED = Path(__file__).parents[3] / "benchmarks" / "studies"
# Two crossing lines behind a steep gate (Nguyen, Nguyen & Ho 2023, arXiv 2305.03288).
STEEP = moe.MixingMeasure([-8.0, 0.0], [[25.0], [0.0]], [15.0, -5.0], [[-20.0], [20.0]], [0.09, 0.16])
GENTLE = moe.MixingMeasure([0.5, 0.0], [[3.0], [0.0]], [1.0, -1.0], [[2.0], [-1.5]], [0.16, 0.25])
GAUSSIAN = moe.MixingMeasure(
    [math.log(0.3), math.log(0.7)], [[-0.5, 0.0], [0.5, 1.0]], [0.3, -0.3], [[0.4, 1.0], [-0.7, 0.5]], [0.01, 0.03],
    gate_covariance=[[[0.2, 0.1], [0.1, 0.3]], [[0.1, 0.0], [0.0, 0.4]]], gate=moe.GaussianGate(),
)  # fmt: skip


def regated(gate: moe.Gate, truth: moe.MixingMeasure = GENTLE, **changes: object) -> moe.MixingMeasure:
    return replace(truth, gate=gate, **changes)


def seeds(count: int, seed: int) -> list[int]:
    return [1000 * seed + i for i in range(count)]


SMALL = {
    "kind": "convergence",
    "title": "Two gentle experts",
    "paper": "It is known.",
    "seed": 3,
    "losses": ["voronoi", "total_variation"],
    "truth": {k: v for k, v in record_of_measure(GENTLE).items() if v is not None and k != "gate"},
    "estimators": {"newton": {"num_experts": 2}, "em": {"num_experts": 2, "method": "em", "criterion": "relative"}},
    "theory": {"voronoi": -0.5},
    "quick": {"n": [60, 120, 240], "replicates": 4},
    "full": {"n": [100, 1000, 10_000], "replicates": 40},
}
