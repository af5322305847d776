# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How fast does a mixture of experts converge?
#
# A theorem says that the maximum-likelihood estimate of a mixture of experts is off by about $n^{-1/2}$, in a distance
# made for the purpose. A simulation should show a line of slope $-1/2$ on logarithmic axes, and published ones do.
# Here is how to make that picture, and three choices that can turn it into another one: **where the climb stops**,
# **what happens to the translations of the gate**, and **which average** is drawn.
#
# A `ConvergenceStudy` has all of them as settings. Its rows are kept in a store, as those of any study are
# ([next tutorial](07_a_study_killed_and_resumed.py)).

# %%
import os
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

from probnn import moe, studies

SMOKE = "PROBNN_SMOKE" in os.environ  # fewer replicates and sizes, to test that the tutorial runs
torch.set_default_dtype(torch.double)
plt.rcParams |= {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium"}
BLUE, RED, GREY = "#1f6f8b", "#d1495b", "#8d8d8d"

truth = moe.MixingMeasure(
    gate_bias=[0.5, 0.0],
    gate_weight=[[3.0], [0.0]],
    intercept=[1.0, -1.0],
    coef=[[2.0], [-1.5]],
    variance=[0.16, 0.25],
)

# %% [markdown]
# ## Two experts fitted to two
#
# The easy case: as many experts as there are. `voronoi` is the loss of the theorem (D1 of Nguyen, Nguyen & Ho 2023,
# arXiv 2305.03288): each fitted expert belongs to the true one that is nearest, and the loss adds what they are apart
# and what the weights of a cell are off. `total_variation` compares the densities themselves, averaged over x.

# %%
sizes = (100, 300, 1000) if SMOKE else (100, 300, 1000, 3000, 10_000)
exact = studies.ConvergenceStudy(
    truth,
    {"two experts": studies.Estimator(num_experts=2)},
    inputs="uniform",
    n_grid=sizes,
    replicates=12 if SMOKE else 40,
    losses=("voronoi", "total_variation"),
    theory={"voronoi": -0.5, "total_variation": -0.5},
    seed=1,
).run(n_jobs=2)
exact_rates = exact.rates()
columns = ["estimator", "loss", "slope", "se", "low", "high", "theory"]
studies.Table({name: exact_rates.table[name] for name in columns})

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for ax, loss in zip(axes, ("voronoi", "total_variation"), strict=True):
    studies.plot_rates(exact.rates(losses=loss), ax=ax)
plt.show()

# %% [markdown]
# A point is the mean over the replicates with its interval, the line is least squares on the logarithms, and the
# standard error of the slope is a bootstrap over replicates. All sizes count: a study that leaves out the small ones
# until the slope is right can have any slope that it wants.
#
# ## One expert too many, and where the climb stops
#
# Now three experts for two. The likelihood of such a model is nearly flat in some directions, so that EM takes
# hundreds of small steps, and the literature's rule, to stop when the log-likelihood changes by less than a millionth
# of its size, stops it on the way. Newton's method on the observed likelihood goes on to the maximum. Both start near
# the truth, as simulations do, and see the same data: cells that differ in their estimator share their seeds.

# %%
over = studies.ConvergenceStudy(
    truth,
    {
        "EM, stopped early": studies.Estimator(
            num_experts=3, method="em", criterion="relative", tolerance=1e-6, max_iter=2000
        ),
        "maximum": studies.Estimator(num_experts=3),
    },
    inputs="uniform",
    n_grid=sizes[1:] if not SMOKE else sizes,
    replicates=12 if SMOKE else 40,
    losses=("voronoi", "voronoi_raw", "total_variation"),
    theory={"voronoi": -0.5, "total_variation": -0.5},
    seed=2,
).run(n_jobs=2)
over_rates = {statistic: over.rates(statistic) for statistic in ("mean", "median")}
studies.Table({name: over_rates["mean"].table[name] for name in columns})

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=False)
for ax, loss in zip(axes, ("voronoi", "total_variation"), strict=True):
    studies.plot_rates(over.rates(losses=loss), ax=ax)
plt.show()

# %% [markdown]
# In total variation both are near $-1/2$. In the loss of the parameters they are not alike at all: the fits that
# stopped early fall faster than the theorem says, and the maxima fall more slowly.
#
# Neither contradicts it. The theorem bounds the loss of the maximum over a *bounded* set of parameters; the starts are
# in the middle of that set, and an EM that stops early stays there. The maximum over all parameters is free to spend
# its third expert on a few rows with a line of their own, far from both true ones, and then the loss is near its bound,
# the sum of the true weights, whatever n is. How far the climbs went shows in the gain over the log-likelihood of the
# truth:

# %%
summary = over.summary([studies.Mean("gain"), studies.Mean("voronoi"), studies.Median("voronoi")])
print(studies.pivot(summary))

X, Y = over.simulation.sample(sizes[-2], list(range(12 if SMOKE else 40)))
maxima = moe.fit(moe.GaussianMoE(3, 1), X, Y, starts=truth, num_restarts=1, seed=0)
smallest = maxima.model.gate_log_probs(X).exp().mean(-2).amin(-1)
loss = moe.voronoi_loss(maxima.model.mixing_measure(), truth, kind="overfit", translate="fit")
weights = truth.gate_bias.exp().sum()
print(f"largest loss {loss.max():.2f}, sum of the true weights {weights:.2f}")
share = f"{int((smallest < 0.1).sum())} of {len(X)}"
print(f"{share} maxima at n = {X.shape[1]:,} use an expert for less than a tenth of the rows")

# %% [markdown]
# ## Translations of the gate
#
# Only differences of scores matter to a softmax: add $t_0 + t_1^\top x$ to all of them and no probability changes. So
# the parameters of a fit are known up to such a translation, and a loss must not depend on which one the algorithm
# happened to return. The theorem's loss takes the best one (`voronoi`). Comparing the parameters as they come
# (`voronoi_raw`) measures a convention:

# %%
fitted = moe.fit(moe.GaussianMoE(3, 1), *over.simulation.sample(1000, [5]), starts=truth, num_restarts=1, seed=0)
G = fitted.model.mixing_measure()
moved = replace(G, gate_bias=G.gate_bias + 3.0, gate_weight=G.gate_weight + 7.0)
x = torch.linspace(0, 1, 5)[:, None]
densities = [moe.GaussianMoE.from_mixing_measure(g).log_prob(x, torch.zeros(1, 5, 1)) for g in (G, moved)]
print(f"densities differ by {(densities[0] - densities[1]).abs().max():.1e}")
for translate in ("fit", None):
    losses = [moe.voronoi_loss(g, truth, kind="overfit", translate=translate).item() for g in (G, moved)]
    print(f"translate={translate!s:5}: {losses[0]:.4g} and, moved, {losses[1]:.4g}")

# %% [markdown]
# In the study the raw loss is not only larger. Its mean rests on the few replicates whose third expert is far out, so
# that it has no rate worth a name; the standard error and the residual of the line say so.

# %%
raw = over.rates(losses="voronoi_raw")
studies.Table({name: raw.table[name] for name in ["estimator", "slope", "se", "low", "high", "residual_sd"]})

# %% [markdown]
# ## Mean or median
#
# Both are honest, and they answer two questions: the risk of the estimate, and what a typical data set gives. Where a
# share of the fits is far out they differ, and a report needs both, with the number of fits that failed. Here is the
# whole distribution of the loss at the largest n:

# %%
n = over.n_grid[-1]
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
bins = np.geomspace(0.01, 4, 30)
for name, color in zip(over.estimators, (RED, BLUE), strict=True):
    values = over.table().where(estimator=name, n=n)["voronoi"]
    ax.hist(values, bins=bins, histtype="step", color=color, label=name, lw=1.4)
    ax.axvline(values.mean(), color=color, ls="-", lw=0.8)
    ax.axvline(np.median(values), color=color, ls=":", lw=1.2)
ax.set(xscale="log", xlabel=f"voronoi loss at n = {n:,} (mean: line, median: dots)", ylabel="data sets")
ax.legend(frameon=False, loc="upper left")
plt.show()
for name in over.estimators:
    mean, median = (r.table.where(estimator=name, loss="voronoi")["slope"][0] for r in over_rates.values())
    print(f"{name:18s} slope of the mean {mean:.2f}, of the median {median:.2f}")

# %% [markdown]
# ## What a report should say
#
# - the rule that stops the climb and its tolerance: they belong to the estimator, and a store refuses rows of another;
# - the loss, and whether it is free of translations;
# - mean *and* median, each with its standard error, over all sizes, and how the fits ended;
# - a distance of densities beside the loss of the parameters.
#
# `over.report("report.md")` writes all that. The studies of the literature, with gates of six kinds, are files in
# `benchmarks/studies`, and `probnn study run benchmarks/studies/s1.toml --quick` runs one.

# %%
slopes = {(r["estimator"], r["loss"]): r for r in over_rates["mean"].table.rows()}
if not SMOKE:
    for rate in exact_rates.table.rows():
        assert abs(rate["slope"] + 0.5) < 0.12
    for name in over.estimators:
        assert abs(slopes[name, "total_variation"]["slope"] + 0.5) < 0.12
    early, maximum = (slopes[name, "voronoi"] for name in over.estimators)
    assert early["high"] < -0.5 < maximum["low"]
kept = [moe.voronoi_loss(g, truth, kind="overfit", translate="fit").item() for g in (G, moved)]
assert abs(kept[0] - kept[1]) < 1e-6 * kept[0]
assert set(exact.table()["status"]) == set(over.table()["status"]) == {"complete"}
