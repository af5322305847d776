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
# # Bayesian optimisation
#
# An experiment takes a day, and there are a few dozen days. A **surrogate** is a distribution over functions given the
# experiments so far: it says what the next one would give, and how unsure it is. An **acquisition function** turns
# that into a place to try. Which prior the surrogate begins with decides how fast it learns; here a Gaussian process
# (`gp`) and a Bayesian neural network (`bnn-hmc`) meet a problem that suits one and a problem that suits the other.

# %%
import math
import os
import time
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from botorch.sampling.pathwise import draw_matheron_paths

import probnn
from probnn.optimization import BayesianOptimization, Real, Space, factor_importance
from probnn.optimization.checking import check_model
from probnn.optimization.problems import named_problem
from probnn.plots import plot_calibration, plot_importance, plot_progress, plot_slices

SMOKE = "PROBNN_SMOKE" in os.environ  # small numbers of draws, to test that the tutorial runs
torch.set_default_dtype(torch.double)
plt.rcParams |= {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium"}
BLUE, RED, GREY, GOLD, GREEN = "#1f6f8b", "#d1495b", "#8d8d8d", "#c98a1b", "#4c8c6a"

surrogates = {name: probnn.get_surrogate(name) for name in ("gp", "bnn-hmc")}
if SMOKE:
    build = surrogates["bnn-hmc"].build
    few = replace(build.method, num_chains=4, num_warmup=10, num_samples=8, max_leapfrog=8, start_steps=20)
    surrogates["bnn-hmc"] = replace(surrogates["bnn-hmc"], build=replace(build, method=few))

# %% [markdown]
# ## Two problems
#
# In the first, the yield of a reactor rises with temperature until the catalyst sinters, and the sooner the higher the
# flow. The best setting is right **at the edge**. The second, Branin's function, is smooth everywhere; it is to be
# minimised.

# %%
branin = named_problem("branin")
reactor = Space(temperature=Real(100, 300), flow=Real(0, 1))


def reactor_yield(temperature, flow):
    t = (temperature - 100) / 200
    alive = 1 / (1 + math.exp(60 * (t + 0.5 * flow - 0.95)))
    return 30 * t - 20 * (flow - 0.5) ** 2 + 40 * alive


grid = [(100 + i, j / 200) for i in range(201) for j in range(201)]
optimum = max(reactor_yield(*point) for point in grid)
problems = {
    "reactor": (reactor, reactor_yield, {"maximize": "yield"}, optimum),
    "Branin": (branin.space, branin.objective, {"minimize": "value"}, branin.optimum),
}


def outcomes(problem, X):
    """Values at points of the unit square."""
    space, objective, *_ = problems[problem]
    return torch.tensor([[objective(**space.values(x))] for x in X])


# %% [markdown]
# ## What a surrogate says
#
# `surrogate.fit(X, Y)` gives a BoTorch model. Both get the same 25 random points, and are asked for 500 others: the
# error of their means, and the log density of what was measured there (higher is better; a model that is wrong and
# sure of itself loses much), both in units of the standard deviation over the square.

# %%
bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
seeds = range(1 if SMOKE else 3)
fitted, scores = {}, {}
complaints = dict.fromkeys(surrogates, ())
for problem in problems:
    for seed in seeds:
        g = torch.Generator().manual_seed(seed)
        X, X_new = torch.rand(25, 2, generator=g), torch.rand(500, 2, generator=g)
        Y, Y_new = outcomes(problem, X), outcomes(problem, X_new)
        for name, surrogate in surrogates.items():
            began = time.perf_counter()
            with warnings.catch_warnings():  # what samplers complain of stays in info.warnings, and comes up below
                warnings.simplefilter("ignore", probnn.errors.DivergenceWarning)
                model = surrogate.fit(X, Y, bounds=bounds, seed=seed)
            complaints[name] += model.source.info.warnings
            seconds = time.perf_counter() - began
            with torch.no_grad():
                p = model.posterior(X_new[:, None], observation_noise=True)
            mean, sd = p.mean[:, 0], p.variance[:, 0].sqrt()
            density = torch.distributions.Normal(mean, sd).log_prob(Y_new) + Y_new.std().log()
            error = (mean - Y_new).square().mean().sqrt() / Y_new.std()
            scores[problem, name, seed] = error.item(), density.mean().item(), seconds
            fitted.setdefault((problem, name), (model, X))

mean_scores = {
    (problem, name): torch.tensor([scores[problem, name, seed] for seed in seeds]).mean(0).tolist()
    for problem in problems
    for name in surrogates
}
print(f"{'':<20}{'error':>7}{'log density':>13}{'seconds':>9}")
for (problem, name), (error, density, seconds) in mean_scores.items():
    print(f"{problem:<10}{name:<10}{error:>7.2f}{density:>13.2f}{seconds:>9.1f}")

# %%
axis = torch.linspace(0, 1, 61)
square = torch.cartesian_prod(axis, axis)
fig, axes = plt.subplots(2, 3, figsize=(9, 5.4), layout="constrained", sharex=True, sharey=True)
for row, problem in zip(axes, problems, strict=True):
    truth = outcomes(problem, square).reshape(61, 61)
    with torch.no_grad():
        maps = {name: fitted[problem, name][0].posterior(square).mean.reshape(61, 61) for name in surrogates}
    for ax, (title, values) in zip(row, {f"{problem}, the truth": truth, **maps}.items(), strict=True):
        levels = torch.linspace(truth.min(), truth.max(), 15).tolist()
        ax.contourf(axis, axis, values.T, levels=levels, cmap="viridis", extend="both")
        ax.plot(*fitted[problem, "gp"][1].T, "o", color="white", mec="black", ms=4)
        ax.set_title(title)
plt.show()

# %% [markdown]
# A Gaussian process has one length scale an axis, the same everywhere. At an edge it must choose: short, and nothing
# is learned of the slopes on both sides; long, and it rings. The network's units turn over where the data want them
# to. On Branin's function one length scale is right, and the network pays for what it need not have considered.
#
# ## A loop
#
# `BayesianOptimization` asks and tells. The first five settings are a space-filling design; each of the others
# maximises the noisy expected improvement (qLogNEI). Every trial says where it comes from.

# %%
num_evaluations = 7 if SMOKE else 17
runs = {"reactor": {}, "Branin": {}}
for name, surrogate in surrogates.items():
    runs["reactor"][name] = [
        BayesianOptimization(reactor, maximize="yield", surrogate=surrogate, seed=seed).run(
            reactor_yield, num_evaluations
        )
        for seed in seeds
    ]
firsts = {name: group[0] for name, group in runs["reactor"].items()}
for name, first in firsts.items():
    best = first.best_measured
    setting = f"{best['temperature']:.0f} and {best['flow']:.2f}"
    print(f"{name:<9} best {best.value:.2f} of {optimum:.2f}, at {setting}, trial {best.number} ({best.source})")

# %% [markdown]
# The model along each parameter, the other one held at the best predicted trial. Bands are central 50 % and 90 %
# intervals of the function; dots are all trials, wherever their other parameter is, so they need not lie inside.

# %%
fig, axes = plt.subplots(2, 2, figsize=(9, 5.6), layout="constrained", sharey=True)
for row, (name, first) in zip(axes, firsts.items(), strict=True):
    plot_slices(first, ax=row)
    row[0].set_title(name, loc="left")
plt.show()

# %% [markdown]
# ## Regret, several times
#
# One run says little: the design alone may have been lucky. So a few seeds, the same design for both surrogates, and
# random search as what has to be beaten. Regret is the distance from the optimum; bands are one standard error.

# %%
pairs = list(seeds)[:2]  # Branin's function: two seeds will do for the tutorial, and no conclusion
length = {"reactor": num_evaluations, "Branin": 7 if SMOKE else 12}
for name, surrogate in surrogates.items():
    runs["Branin"][name] = [
        BayesianOptimization(branin.space, minimize="value", surrogate=surrogate, seed=seed).run(
            branin.objective, length["Branin"]
        )
        for seed in pairs
    ]
for problem, (space, objective, goal, _) in problems.items():
    runs[problem]["random"] = [
        BayesianOptimization(space, **goal, surrogate="random", seed=seed).run(objective, length[problem])
        for seed in range(20)
    ]

fig, axes = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
for ax, (problem, (*_, best)) in zip(axes, problems.items(), strict=True):
    plot_progress(runs[problem], optimum=best, ax=ax).set_title(problem)
plt.show()

regret = {
    (problem, name): torch.tensor([abs(problems[problem][3] - bo.best_values()[-1]) for bo in group])
    for problem, group_of in runs.items()
    for name, group in group_of.items()
}
print(f"{'':<20}{'regret at the end, by seed'}")
for (problem, name), values in regret.items():
    shown = values.tolist() if name != "random" else [values.mean().item()]
    mean = "  on average of 20" if name == "random" else ""
    print(f"{problem:<10}{name:<10}{'  '.join(f'{v:6.2f}' for v in shown)}{mean}")

# %% [markdown]
# Read that with care. The network predicts the reactor far better, and yet in seventeen experiments from three
# designs the two are not told apart: a better map helps an optimiser only where it is looking, and the design decides
# half of what is found. Random search has its share of luck in two dimensions, too. To know more takes more seeds and
# more problems: the [benchmarks](../benchmarks.md) have them, over test functions and real laboratory tables, and
# `probnn backtest` asks the question of a table of your own.
#
# ## Thompson sampling
#
# A drawn function is a guess of the truth, complete with a maximum. Trying the maximum of one draw is Thompson
# sampling (Thompson 1933): settings are chosen as often as they are thought to be best. Draws for the first five
# trials and for all of them, at the flow that the best trial has:

# %%
first = firsts["bnn-hmc"]
flow = first.best_measured["flow"]
temperatures = torch.linspace(100, 300, 201)
features = torch.stack([reactor.encode({"temperature": t, "flow": flow}) for t in temperatures.tolist()])

fig, axes = plt.subplots(1, 2, figsize=(9, 3.1), sharey=True, layout="constrained")
peaks = {}
for ax, count in zip(axes, (5, len(first.trials)), strict=True):
    X, Y = first.points(first.trials[:count]), torch.tensor([[t.value] for t in first.trials[:count]])
    model = surrogates["bnn-hmc"].fit(X, Y, bounds=reactor.bounds, seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        paths = draw_matheron_paths(model, torch.Size([20]))(features)
    peaks[count] = temperatures[paths.argmax(-1)]
    ax.plot(temperatures, paths.T, color=BLUE, lw=0.8, alpha=0.6)
    ax.plot(peaks[count], paths.max(-1).values, "^", color=RED, ms=6)
    ax.plot(temperatures, [reactor_yield(t, flow) for t in temperatures.tolist()], "k--", lw=1)
    ax.set(title=f"after {count} trials", xlabel="temperature")
axes[0].set_ylabel(f"yield at flow {flow:.2f}")
plt.show()

# %% [markdown]
# Red triangles are the maxima. In a loop it is one word, and a batch is as many draws:
#
# ```python
# bo = BayesianOptimization(reactor, maximize="yield", surrogate="bnn-hmc", acquisition="thompson")
# ```
#
# ## May it be believed?
#
# First what the sampler says of itself. A run of the recipe is short (16 chains of 16 draws), enough for an
# acquisition function and hardly for a paper: `converged` compares the chains at function values and is strict, and
# `info.warnings` holds what else there was to complain of. Neither function has any noise, which makes a posterior
# narrow and its walls steep; divergences say that.

# %%
for name, first in firsts.items():
    info = first.fit().source.info
    print(f"{name}, in the loop: {info.seconds:.1f} s, converged: {info.converged}, warnings: {len(info.warnings)}")
for name, found in complaints.items():
    print(f"{name}, fitted to 25 random points:", *(found or ["no warnings"]), sep="\n  ")

# %% [markdown]
# Then what it says of data that it has not seen. `check_model` predicts every trial from the others; where each
# outcome lies in its predictive distribution should be uniform. Trials of an optimisation are no random sample, they
# crowd at the best place, so this is a check of the model where it is used. (`probnn suggest` prints these sentences
# before it suggests anything.)

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3.9), layout="constrained", sharey=True)
checks = {}
for ax, (name, first) in zip(axes, firsts.items(), strict=True):
    checks[name] = check_model(surrogates[name], first.fit(), first.data(), reactor.bounds)
    plot_calibration(checks[name].position, ax=ax).set_title(name)
    print(f"{name}:", *checks[name].sentences("yield"), sep="\n  ")
plt.show()

# %% [markdown]
# ## What matters
#
# Sobol's total index is the share of the function's variance that a parameter takes part in; the first-order index is
# what it does alone. Intervals are over functions drawn from the posterior. They overlap wherever the data do not
# tell.

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained", sharey=True)
importances = {}
for ax, (name, first) in zip(axes, firsts.items(), strict=True):
    importances[name] = factor_importance(first, num_draws=32 if SMOKE else 128)
    plot_importance(importances[name], ax=ax).set_title(name)
plt.show()

# %% [markdown]
# ## What was claimed

# %%
for problem, group in runs.items():
    for name in surrogates:
        assert all(len(bo.complete) == length[problem] for bo in group[name])
        assert all(t.source == ("initial" if t.number < 5 else "model") for bo in group[name] for t in bo.trials)
for importance in importances.values():
    assert importance.total.shape[1] == 2 and importance.total.isfinite().all()
if not SMOKE:
    edge, smooth = ({name: mean_scores[problem, name] for name in surrogates} for problem in problems)
    assert edge["bnn-hmc"][0] < 0.5 * edge["gp"][0], "at an edge the network's error is less than half"
    assert edge["bnn-hmc"][1] > edge["gp"][1] + 0.5, "and what was measured is no surprise to it"
    assert smooth["gp"][0] < smooth["bnn-hmc"][0] and smooth["gp"][1] > smooth["bnn-hmc"][1], "smooth: the reverse"
    for name in surrogates:
        ends = [(bo.best_values()[4], bo.best_values()[-1]) for bo in runs["reactor"][name]]
        assert all(last > first for first, last in ends), "each run improves on its design"
    assert peaks[17].std() < peaks[5].std(), "draws agree on the maximum as trials come in"
