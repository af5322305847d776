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
# # From weights to functions
#
# Nobody knows what weights should be, and everybody has an opinion about functions: how fast they vary, how large they
# are, how smooth. A Gaussian process is written about functions in the first place; a network is not, but is what one
# may want to compute with. This tutorial takes the opinion from the one and puts it into the other (Tran, Rossi, Milios
# and Filippone 2022, arXiv 2011.12829): it finds the law of the weights whose *functions* look like those of a process
# we can reason about. And then it asks whether that pays, by posteriors that are exact enough to be compared.

# %%
import os

import gpytorch
import matplotlib.pyplot as plt
import torch

import probnn
from probnn import priors
from probnn.diagnostics import rhat

SMOKE = "PROBNN_SMOKE" in os.environ  # few steps and draws, to test that the tutorial runs
torch.set_default_dtype(torch.double)
plt.rcParams |= {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium"}
BLUE, RED, GREY, GOLD, GREEN = "#1f6f8b", "#d1495b", "#8d8d8d", "#c98a1b", "#4c8c6a"


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## What a law of weights says
#
# Two layers of 50 tanh units, and the textbook's prior: all scales 1, divided by the square root of the fan-in. What we
# want is a Gaussian process with an RBF kernel, of variance 1 and length scale 0.6, on $[-3, 3]$.

# %%
network = probnn.MLP(input_dim=1, hidden=(50, 50), activation="tanh")
textbook = probnn.BayesianNetwork(network, priors.NormalWeights(weight_scale=1.0, bias_scale=1.0))


def rbf(lengthscale, **hyperprior):
    kernel = gpytorch.kernels.RBFKernel()
    kernel.lengthscale = lengthscale
    return probnn.GaussianProcess(kernel, input_dim=1, **hyperprior)


wanted = rbf(0.6)
x = torch.linspace(-3, 3, 301)[:, None]


def show_functions(ax, process, color, title, count=8):
    """Functions of a prior, and the band that holds 90 % of them at every point."""
    f = process.sample(x, (1000,), generator=seeded(1))[..., 0]
    low, high = f.quantile(torch.tensor([0.05, 0.95]), dim=0)
    ax.fill_between(x[:, 0], low, high, color=color, alpha=0.15, lw=0)
    ax.plot(x, f[:count].T, color=color, lw=1)
    ax.set(title=title, xlabel="$x$", xlim=(-3, 3), ylim=(-4.2, 4.2))


fig, axes = plt.subplots(1, 2, figsize=(9, 2.9), sharey=True, layout="constrained")
show_functions(axes[0], textbook, GREY, "what we have: scales 1")
show_functions(axes[1], wanted, GOLD, "what we want: RBF process, length scale 0.6")
axes[0].set_ylabel("$f(x)$")
plt.show()

# %% [markdown]
# The bands are not so far from each other, and that is the trap: at any *one* point both laws are about normal. But
# nearly all that the network's functions do is to differ by an offset and a slope.
#
# ## Matching
#
# `match_prior` tunes the hyper-parameters that the law of the weights names, here one scale for the weights and one
# for the biases of each layer, until the function values at measurement points have the target's law. The default
# objective, `"auto"`, has two stages. The first needs no draws: the second moments $E\,f(x) f(x')$ of a wide network
# are known in closed form, and so is the distance of two normal laws with such moments. The second minimises the
# **energy distance**
#
# $$ D(P, Q) = 2\,E\|f - g\| - E\|f - f'\| - E\|g - g'\|, \qquad f, f' \sim P,\; g, g' \sim Q, $$
#
# of draws at a few random points a step. It is zero only where the laws are the same.

# %%
grid = priors.Grid(-3, 3, 12 if SMOKE else 64)
few = {"num_steps": 8, "num_draws": 32} if SMOKE else {}
plain = probnn.match_prior(textbook, wanted, grid, seed=0, **few)
print(plain)

# %% [markdown]
# Three columns, because a distance alone says little. `untuned` is where we came from. The `floor` is the distance of
# the target to *itself*, with as many draws: below it there is only luck (the energy distance is estimated without
# bias, so its floor is around zero and may be negative). What is between the matched column and the floor is what
# this network cannot do, whatever its six scales. Look at the functions:

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 2.9), sharey=True, layout="constrained")
plain.plot(ax=axes)
axes[0].set_ylabel("$f(x)$")
plt.show()

# %% [markdown]
# ## Staircases
#
# The bands agree, and functions now vary as much as they should and about as fast. But they are staircases. The middle
# weights have a scale of about 75, so that units of the second layer are switches.
#
# The reason is that a tanh network is not stationary. A unit turns over once, somewhere, and then stays where it is;
# far out all units have turned. A stationary process looks the same everywhere. So the optimum is at infinity: ever
# steeper switches, ever wider spread, for ever smaller gains, which the energy distance *does* see, while it hardly
# sees that functions become rough at a scale below the spacing of the points. There are two ways out:
#
# - `shrinkage` charges for the squared distance of the log scales from where they started, so that they stop where
#   nothing is to be gained any more;
# - units that *can* do it. `activation="sin"` turns over again and again, and with normal weights its features are
#   those of an RBF process.

# %%
sine_network = probnn.MLP(input_dim=1, hidden=(50, 50), activation="sin")
sine_start = probnn.BayesianNetwork(sine_network, priors.NormalWeights())
shrunk = probnn.match_prior(textbook, wanted, grid, shrinkage=0.001, seed=0, **few)
sine = probnn.match_prior(sine_start, wanted, grid, seed=0, **few)

fine = torch.linspace(-1, 1, 101 if SMOKE else 1001)[:, None]


def roughness(process):
    """Mean squared slope, by differences of 0.002: for an RBF process 1 / lengthscale^2."""
    f = process.sample(fine, (200,), generator=seeded(2))[..., 0]
    return (f.diff(dim=-1) / (fine[1] - fine[0])).square().mean().item()


matches = {"tanh": (plain, RED), "tanh, shrinkage 0.001": (shrunk, BLUE), "sin": (sine, GREEN)}
print(f"{'':<24}{'energy':>8}{'marginal W1':>13}{'mean slope^2':>14}   weight scales")
rough = {"target": roughness(wanted)}
for name, (match, _) in matches.items():
    rough[name] = roughness(match.prior)
    scales = ", ".join(f"{s:.3g}" for s in match.prior.weight_prior.weight_scale)
    energy, marginal = match.distances["energy"], match.distances["marginal_w1"]
    print(f"{name:<24}{energy:>8.3f}{marginal:>13.3f}{rough[name]:>14.1f}   {scales}")
floor = plain.floor
print(f"{'the target itself':<24}{floor['energy']:>8.3f}{floor['marginal_w1']:>13.3f}{rough['target']:>14.1f}")

# %%
fig, axes = plt.subplots(1, 4, figsize=(9, 2.6), sharey=True, layout="constrained")
panels = {name: (match.prior, color) for name, (match, color) in matches.items()} | {"target": (wanted, GOLD)}
for ax, (name, (process, color)) in zip(axes, panels.items(), strict=True):
    f = process.sample(fine, (4,), generator=seeded(3))[..., 0]
    ax.plot(fine, f.T, color=color, lw=1.1)
    ax.set(title=name, xlabel="$x$", xlim=(-1, 1))
axes[0].set_ylabel("$f(x)$, a third of the grid")
plt.show()

# %% [markdown]
# For a network of tanh units the price of smooth functions is a somewhat larger distance. The sine network has no such
# price to pay: its distance is at the floor, and its functions are as smooth as the target's.
#
# ## When the length scale is not known either
#
# Give it a law, and every function of the target has its own:

# %%
unsure = rbf(0.6, hyperprior={"lengthscale": priors.LogNormal(-0.2, 0.6)})
hierarchical = probnn.BayesianNetwork(network, priors.InverseGammaWeights())
scales = {"num_steps": 8, "num_draws": 32} if SMOKE else {"num_steps": 150}
mixed = probnn.match_prior(hierarchical, unsure, grid, objective="energy", shrinkage=0.001, seed=0, **scales)
print(mixed)

# %% [markdown]
# `InverseGammaWeights` gives the weights and the biases of every layer a variance of their own, $\sigma^2 \sim
# \mathrm{InvGamma}(a, b)$, anew for every function, and the match finds $a$ and $b$. Functions now differ in how fast
# they vary, as those of the target do. In one number for each function, the root mean square of its slope:

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 2.9), layout="constrained")
show_functions(axes[0], mixed.prior, BLUE, "network, random scales", count=6)
show_functions(axes[1], unsure, GOLD, "RBF process, random length scale", count=6)
axes[0].set_ylabel("$f(x)$")
slopes = {}
for name, process, color in (
    ("fixed scales", shrunk.prior, GREY),
    ("random scales", mixed.prior, BLUE),
    ("target", unsure, GOLD),
):
    f = process.sample(x[::4], (2000,), generator=seeded(4))[..., 0]
    slopes[name] = (f.diff(dim=-1) / 0.08).square().mean(-1).sqrt().log10()
    axes[2].hist(slopes[name], bins=40, density=True, histtype="step", lw=1.6, color=color, label=name)
axes[2].set(title="slope of a function", xlabel="log$_{10}$ root mean square", ylabel="density")
axes[2].legend(frameon=False, fontsize="small", loc="upper left")
plt.show()

# %% [markdown]
# ## Does it pay? The posterior
#
# A function of the target, 64 noisy observations, and a gap of 40 % of the range. Because the truth *is* a function of
# the Gaussian process, its exact posterior is the best there is, and the networks' can be measured against it.
#
# The networks' posteriors are sampled by Hamiltonian Monte Carlo with the last layer integrated out, which is exact and
# lets the chains mix far better: given the hidden layers, a network with normal last weights is a linear model.

# %%
n, noise = 64, 0.2
truth = wanted.sample_functions((1,), generator=seeded(7))
left = torch.rand(n, 1, generator=seeded(8))
X = torch.where(left < 0.5, -3 + 3.6 * left, 1.2 + 3.6 * (left - 0.5))  # nothing between -1.2 and 1.2
Y = truth(X)[0] + noise * torch.randn(n, 1, generator=seeded(9))
Y_test = truth(x)[0] + noise * torch.randn(len(x), 1, generator=seeded(10))
in_gap = x[:, 0].abs() < 1.2

likelihood = probnn.likelihoods.Gaussian(noise=noise)
length = (
    {"num_chains": 4, "num_warmup": 10, "num_samples": 5, "start_steps": 20}
    if SMOKE
    else {"num_chains": 8, "num_samples": 50}
)
hmc = probnn.HMC(collapse_last_layer=True, max_leapfrog=64, **length)
posteriors = {
    "network, scales 1": (hmc.fit(textbook, likelihood, X, Y, seed=0), GREY),
    "tanh, matched (shrinkage)": (hmc.fit(shrunk.prior, likelihood, X, Y, seed=0), BLUE),
    "sin, matched": (hmc.fit(sine.prior, likelihood, X, Y, seed=0), GREEN),
    "the process itself, exactly": (wanted.condition(X, Y, noise_variance=torch.full_like(Y, noise**2)), GOLD),
}


def worst_rhat(posterior):
    """Of f at 31 points, over the chains; none of what has no chains."""
    if not isinstance(posterior, probnn.EmpiricalProcess):
        return ""
    return f"{rhat(posterior.apply(posterior.theta, x[::10])[..., 0]).max().item():.2f}"


# %%
fig, axes = plt.subplots(2, 2, figsize=(9, 5.2), sharex=True, sharey=True, layout="constrained")
scores = {}
print(f"{'':<30}{'NLL, outside':>13}{'NLL, gap':>10}{'90 % covers, gap':>18}{'R-hat':>8}")
for ax, (name, (posterior, color)) in zip(axes.flat, posteriors.items(), strict=True):
    f = posterior.sample(x, (400,), generator=seeded(11))[..., 0]
    mean, variance = f.mean(0), f.var(0) + noise**2
    nll = 0.5 * ((Y_test[:, 0] - mean).square() / variance + (2 * torch.pi * variance).log())
    inside = ((Y_test[:, 0] - mean).abs() < 1.645 * variance.sqrt())[in_gap].double().mean().item()
    scores[name] = (nll[~in_gap].mean().item(), nll[in_gap].mean().item(), inside)
    print(f"{name:<30}{scores[name][0]:>13.3f}{scores[name][1]:>10.3f}{inside:>18.2f}{worst_rhat(posterior):>8}")
    low, high = f.quantile(torch.tensor([0.05, 0.95]), dim=0)
    ax.fill_between(x[:, 0], low, high, color=color, alpha=0.25, lw=0, label="90 % of $f$")
    ax.plot(x, mean, color=color, lw=1.6, label="mean")
    ax.plot(x, truth(x)[0], "k:", lw=1.1, label="truth")
    ax.plot(X, Y, ".", color="k", ms=3, label="data")
    ax.set(title=name, xlim=(-3, 3), ylim=(-2.2, 3.2))
for ax in axes[1]:
    ax.set_xlabel("$x$")
fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
plt.show()

# %% [markdown]
# The textbook's prior is sure of itself where it knows nothing: its functions cannot bend within the gap, so that in
# their eyes the data on both sides leave hardly a choice. Outside of the gap it takes wiggles for noise. The matched
# priors know better, and the sine network is, for practical purposes, the Gaussian process. Its matched prior was as
# near as the floor, and the posterior inherits that: the likelihood is the same, and Bayes' rule knows functions only
# by their values at the data and where we ask.
#
# R-hat is of function values, over chains. It is still above 1.01, so the second digit of the table is not to be leant
# on: more warm-up (`num_warmup`) and longer trajectories (`max_leapfrog`) are the cure, and time their price.
#
# ## Tempering
#
# Some find that networks predict better if the likelihood is raised to a power $1/T > 1$, a "cold" posterior, and
# call it a riddle (Wenzel et al. 2020, arXiv 2002.02405). One answer is that the prior was wrong: data must be
# counted twice where functions that could explain them are thought next to impossible. With a prior matched to
# something sensible there is less to be mended, as Tran et al. found for networks on images. To try it,
# `probnn.HMC(temperature=0.5)`; every $T$ but 1 is not Bayes, and its bands have no such meaning. `probnn.SGHMC`
# takes `temperature` too.

# %%
colder = probnn.HMC(collapse_last_layer=True, max_leapfrog=64, temperature=0.25, **length)
cold = colder.fit(textbook, likelihood, X, Y, seed=0)
f = cold.sample(x, (400,), generator=seeded(11))[..., 0]
variance = f.var(0) + noise**2
nll = 0.5 * ((Y_test[:, 0] - f.mean(0)).square() / variance + (2 * torch.pi * variance).log())
print(f"scales 1, T = 1/4: NLL {nll[~in_gap].mean():.3f} outside, {nll[in_gap].mean():.3f} in the gap")

# %% [markdown]
# Colder, it follows the data somewhat better, and is yet more certain in the gap. Temperature cannot give a prior
# functions that it does not have.
#
# ## What to read next
#
# - [Matching a prior](../how-to/match-a-prior.md) for your own inputs, and
#   [functional priors](../explanation/functional-priors.md) for what is exact and what is estimated.
# - The surrogate `bnn-functional` is a sine network with random scales, matched to the Gaussian process prior that
#   `gp` starts from: [which surrogate?](../how-to/which-surrogate.md)
# - [HMC and its diagnostics](02_hmc_and_its_diagnostics.py), for chains that agree.
#
# What was claimed, asserted:

# %%
assert plain.distances["energy"] < plain.untuned["energy"] and mixed.distances["energy"] < mixed.untuned["energy"]
assert scores["network, scales 1"][1] > scores["the process itself, exactly"][1], "too sure in the gap"
if not SMOKE:
    assert plain.distances["energy"] < 0.1 and shrunk.distances["energy"] < 0.13
    assert sine.distances["energy"] < 0.01, "as near as the floor"
    assert rough["tanh"] > 10 * rough["target"], "staircases"
    assert rough["tanh, shrinkage 0.001"] < 4 * rough["target"] and rough["sin"] < 1.5 * rough["target"]
    assert slopes["fixed scales"].std() < 0.5 * slopes["random scales"].std(), "one number for all functions"
    assert abs(slopes["random scales"].std() - slopes["target"].std()) < 0.15
    outside, gap, _ = scores["the process itself, exactly"]
    for matched in ("tanh, matched (shrinkage)", "sin, matched"):
        assert scores[matched][0] < outside + 0.05 and scores[matched][1] < gap + 0.5
    assert scores["network, scales 1"][1] > gap + 1 and nll[in_gap].mean() > gap + 1
