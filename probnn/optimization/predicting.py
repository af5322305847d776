"""What the models of an optimisation say of settings, in a person's units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from .checking import cdf

if TYPE_CHECKING:
    from .loop import BayesianOptimization


def predict(bo: BayesianOptimization, settings: Sequence[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    r"""Predictions of measurements at settings, noise included, and the chance that they can be used.

    Args:
        bo: The optimisation; with random search, or an outcome that was measured less than twice, there is no
            model and its predictions are None.
        settings: Values of the parameters.

    Returns:
        A dictionary a setting, for every outcome y with ``y_mean``, ``y_std``, ``y_q05`` and ``y_q95`` (mean,
        standard deviation and the ends of the central 90 % interval of what would be measured), and ``p_ok``: the
        probability that the experiment succeeds, times the probabilities that its outcomes keep within their
        bounds; None where there are neither failures nor bounds to tell it from.

    Example:
        >>> from probnn.optimization import BayesianOptimization, Real, Space
        >>> bo = BayesianOptimization(Space(x=Real(0, 1)), minimize="loss", surrogate="gp")
        >>> for trial in bo.ask(4):
        ...     bo.tell(trial, trial["x"] ** 2)
        >>> [row] = predict(bo, [{"x": 0.5}])
        >>> row["loss_q05"] < row["loss_mean"] < row["loss_q95"], row["p_ok"]
        (True, None)
    """
    rows: list[dict[str, float | None]] = [{} for _ in settings]
    if not settings:
        return rows
    able: list[float | None] = [None] * len(settings)
    X = torch.stack([bo.model_space.encode({n: s[n] for n in bo.space.free}) for s in settings])
    for name in bo.goals.outcomes:
        bounds = [b for b in bo.goals.bounds if b.name == name]
        if bo.surrogate == "random" or len(bo.data(name).X) < 2:
            for row in rows:
                row |= dict.fromkeys((f"{name}_mean", f"{name}_std", f"{name}_q05", f"{name}_q95"))
            continue
        sign, (model, units) = bo.goals.sign(name), bo.unit_model(name)
        with torch.no_grad():
            posterior = model.posterior(X.unsqueeze(-2), observation_noise=_noise(bo, name))
            mean = sign * units.outside(posterior.mean.flatten())
            std = units.scale * posterior.variance.flatten().sqrt()
            ends = [posterior.quantile(torch.tensor(p, dtype=X.dtype)).flatten() for p in (0.05, 0.95)]
            ends = [sign * units.outside(end) for end in ends]
            low, high = ends if sign > 0 else ends[::-1]
            for i, row in enumerate(rows):
                row[f"{name}_mean"], row[f"{name}_std"] = float(mean[i]), float(std[i])
                row[f"{name}_q05"], row[f"{name}_q95"] = float(low[i]), float(high[i])
            if bounds:
                # In the model's signs the strictest bounds from above and below are one interval.
                upper = [units.inside(sign * b.bound) for b in bounds if b.upper == (sign > 0)]
                lower = [units.inside(sign * b.bound) for b in bounds if b.upper != (sign > 0)]
                held = cdf(posterior, min(upper)).flatten() if upper else torch.ones_like(mean)
                held = (held - cdf(posterior, max(lower)).flatten()).clamp_min(0.0) if lower else held
                able = [float(p) * (1.0 if a is None else a) for a, p in zip(able, held, strict=True)]
    success = bo.success()
    if success is not None:
        with torch.no_grad():
            chance = success.probability(X)
        able = [float(p) * (1.0 if a is None else a) for a, p in zip(able, chance, strict=True)]
    for row, chance_ok in zip(rows, able, strict=True):
        row["p_ok"] = chance_ok
    return rows


def _noise(bo: BayesianOptimization, name: str) -> bool | torch.Tensor:
    """The noise of a new measurement: what the model inferred, or the mean of the variances that are known."""
    data = bo.data(name)
    if data.Yvar is None:
        return True
    variance = data.Yvar.mean().reshape(1, 1, 1)
    model = bo.model(name)
    if hasattr(model, "outcome_transform"):  # BoTorch wants it in transformed units
        variance = model.outcome_transform(torch.zeros_like(variance), variance)[1]
    return variance
