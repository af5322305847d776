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
# # Functions, priors, posteriors
#
# Everything in probnn is a **distribution over functions** $f : \mathbb R^d \to \mathbb R^c$. A prior is one and a
# posterior is one, so they have the same verbs, and a method of inference is a map between them:
#
# $$ p(f) \;\xrightarrow{\;\; p(y \mid f),\; X,\; Y \;\;}\; p(f \mid X, Y) \propto p(f) \prod_i p(y_i \mid f(x_i)). $$
#
# This tutorial draws functions, asks what a network's prior says about them before any data, and compares five
# posteriors of one data set.

# %%
import os
import tempfile
import warnings
from pathlib import Path

import gpytorch
import matplotlib.pyplot as plt
import torch

import probnn
from probnn.diagnostics import function_statistics, rhat
from probnn.plots import plot_functions

SMOKE = "PROBNN_SMOKE" in os.environ  # small numbers of draws, to test that the tutorial runs
torch.set_default_dtype(torch.double)
plt.rcParams |= {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium"}
BLUE, RED, GREY, GOLD, GREEN = "#1f6f8b", "#d1495b", "#8d8d8d", "#c98a1b", "#4c8c6a"


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## A function is something you can call
#
# A network is a function $f(x) = \mathrm{net}(x; w)$ of flat weights $w$. A law of the weights makes it a law of
# functions: the push-forward of $p(w)$ under $w \mapsto \mathrm{net}(\cdot\,; w)$.

# %%
network = probnn.MLP(input_dim=2, hidden=(50, 50), activation="tanh")
unit = probnn.BayesianNetwork(network, probnn.priors.NormalWeights(weight_scale=1.0, bias_scale=1.0, scaling="fan_in"))
f = unit.sample_functions((8,), generator=seeded(0))
print(f)

# %% [markdown]
# `f` holds eight functions. They can be asked anywhere, as often as one likes and in any order, and are always the
# same ones; they are differentiable in their inputs. `sample` gives values of functions instead, which is cheaper
# if the points are known, and `sample_tasks` an *independent* function for each element of a batch.

# %%
X = torch.rand(3, 100, 2, generator=seeded(1))  # a batch of 3 sets of 100 points
same = f(X)[:, 1, 40:50]
assert torch.allclose(f(X[1, 40:50]), same)
x = X[0].clone().requires_grad_(True)
(slope,) = torch.autograd.grad(f(x).sum(), x)
shapes = {
    "f(X)": f(X),
    "df/dx": slope,
    "sample(X, (5,))": unit.sample(X, (5,), generator=seeded(2)),
    "sample_tasks(X)": unit.sample_tasks(X, generator=seeded(2)),
    "predict(X).mean": unit.predict(X).mean,
}
for name, value in shapes.items():
    print(f"{name:<16} {tuple(value.shape)}")

# %% [markdown]
# `predict` is the predictive distribution as a BoTorch posterior. It is deterministic: in closed form where there
# is one, and else a mixture over fixed draws.
#
# ## What does a prior say?
#
# Nobody has opinions about weights. The weights above have the textbook's prior, $w \sim N(0, 1/n_\text{in})$ and
# $b \sim N(0, 1)$, and the functions it means on a unit box are these.

# %%
d = 2
box = torch.tensor([[0.0], [1.0]]).expand(2, d)
default = probnn.priors.BNNPrior()(d, 1)
centred = torch.tensor([[-1.0], [1.0]]).expand(2, d)
gp = probnn.priors.GPPrior()(d, 1)


def along_first_axis(ax, process, box, color, count=12):
    """Functions along the first axis, through the centre of the box."""
    line = box.mean(0).repeat(201, 1)
    line[:, 0] = torch.linspace(*box[:, 0].tolist(), 201)
    functions = process.sample_functions((count,), generator=seeded(3))
    ax.plot(line[:, 0], functions(line)[..., 0].T, color=color, lw=1)
    ax.set(xlabel="$x_1$", ylim=(-4.6, 4.6), xticks=torch.linspace(*box[:, 0].tolist(), 3))


fig, axes = plt.subplots(1, 3, figsize=(9, 2.9), sharey=True, layout="constrained")
along_first_axis(axes[0], unit, box, GREY)
along_first_axis(axes[1], default, centred, BLUE)
along_first_axis(axes[2], gp, box, GOLD)
axes[0].set(title="network, all scales 1, on $[0, 1]^2$", ylabel="$f(x_1, \\mathrm{centre})$")
axes[1].set_title("probnn.priors.BNNPrior, on $[-1, 1]^2$")
axes[2].set_title("BoTorch's GP prior, on $[0, 1]^2$")
plt.show()

# %% [markdown]
# The grey functions are nearly constant: each has an offset and hardly anything else. To say so in numbers,
# `probnn.diagnostics.function_statistics` draws functions $f_s$ from a prior and reports, among others,
#
# - the **offset**: the standard deviation, over functions, of a function's mean over the box;
# - the **sd along an axis**: the standard deviation of $t \mapsto f_s(c_1, \dots, t, \dots, c_d)$, $c$ the centre
#   of the box and $t$ running through one side of it, as a mean over axes and functions;
# - the **turns**: how often such a line changes between rising and falling, as a mean likewise.
#
# Outcomes are standardised before a surrogate is fitted, so a good prior has a total standard deviation near 1,
# most of it *within* functions, and a few turns in whatever dimension.

# %%
dimensions = (1, 2, 6, 20)
networks = {d: probnn.MLP(input_dim=d, hidden=(50, 50)) for d in dimensions}
normal = probnn.priors.NormalWeights()  # all scales 1
candidates = {
    "scales 1, [0, 1]": (0.0, GREY, lambda d: probnn.BayesianNetwork(networks[d], normal)),
    "scales 1, [-1, 1]": (-1.0, RED, lambda d: probnn.BayesianNetwork(networks[d], normal)),
    "BNNPrior, [-1, 1]": (-1.0, BLUE, lambda d: probnn.priors.BNNPrior()(d, 1)),
    "BoTorch's GP, [0, 1]": (0.0, GOLD, lambda d: probnn.priors.GPPrior()(d, 1)),
}
table = {}
for name, (low, _, prior_for) in candidates.items():
    for d in dimensions:
        bounds = torch.tensor([[low], [1.0]]).expand(2, d)
        table[name, d] = function_statistics(prior_for(d), bounds, num_functions=100 if SMOKE else 400)

print(f"{'prior and box':<22}{'d':>4}{'total':>8}{'offset':>8}{'within share':>14}{'sd along axis':>15}{'turns':>7}")
for (name, d), s in table.items():
    print(
        f"{name:<22}{d:>4}{s.total_sd.item():>8.2f}{s.offset_sd.item():>8.2f}{s.within_share.item():>14.2f}"
        f"{s.axis_sd.item():>15.3f}{s.turns.item():>7.2f}"
    )

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 3.1), layout="constrained")
panels = {"offset_sd": "offset (sd)", "axis_sd": "sd along an axis", "turns": "turns along an axis"}
for ax, (statistic, title) in zip(axes, panels.items(), strict=True):
    for name, (_, color, _) in candidates.items():
        values = [getattr(table[name, d], statistic).item() for d in dimensions]
        errors = [2 * table[name, d].standard_errors[statistic].item() for d in dimensions]
        ax.errorbar(dimensions, values, errors, color=color, marker="o", ms=4, lw=1.5, label=name)
    ax.set(title=title, xlabel="number of inputs $d$", xscale="log", ylim=(0, None))
    ax.set_xticks(dimensions, [str(d) for d in dimensions])
    ax.minorticks_off()
axes[2].legend(frameon=False, fontsize="small")
plt.show()

# %% [markdown]
# ### Why a network is flat, and what the default does about it
#
# A unit of the first layer sees $a(x) = w^\top x + b$ with $w_j \sim N(0, \sigma_w^2 / d)$ and
# $b \sim N(0, \sigma_b^2)$. Along one axis only one of $d$ weights moves, so $a$ varies by about
# $\sigma_w / \sqrt d$ while its bias varies by $\sigma_b$: with both scales 1 the unit does not get out of the
# straight part of $\tanh$, and what it has in common for all $x$ is larger than what it has not. The next layers
# repeat that, and the last bias adds an offset of 1. The default differs in four things:
#
# - **Inputs on $[-1, 1]$.** Weights act around the origin: the unit turns over on the hyperplane $w^\top x = -b$,
#   at a distance $|b| / \|w\|$ from it. If the origin is the centre of the box, those planes cross the box, and the
#   prior is symmetric in every input. With $[0, 1]^d$ they crowd around one corner, and the box is half as wide.
# - **A scale for each layer.** The first weights set how fast units turn over, so the length scale, and the first
#   biases where they do: large ones spread the turning points over the box. The last weights set the amplitude. The
#   last bias is the offset: small, because outcomes are standardised.
# - **Random scales.** No single length scale suits every problem. In `HierarchicalWeights` each block's scale is
#   random, every drawn function has scales of its own, and inference finds them along with the weights; this is the
#   oldest trick of the trade (MacKay 1992; Neal 1996).
# - **Width drops out.** Fan-in scaling keeps all this as the network widens, and in the limit the network becomes a
#   Gaussian process (Neal 1996; Lee et al. 2018, arXiv 1711.00165; Matthews et al. 2018, arXiv 1804.11271).
#
# The Gaussian process has no such trouble, because its kernel is written about functions in the first place;
# BoTorch's default grows its length scale with $\sqrt d$ (Hvarfner, Hellsten and Nardi 2024, arXiv 2402.02229).
#
# ### What a flat prior does
#
# Here is a function of six inputs, standardised and measured with noise 0.1. Both networks infer the noise, by
# Laplace's method, which is quick. Where
# all prior functions are flat, the only way to explain the data is to call them noise.

# %%
d, n = 6, 60


def signal(U):
    return (2 * torch.pi * U[:, :1]).sin() + 4 * (U[:, 1:2] - 0.5) ** 2 + U[:, 2:3] * U[:, 3:4] + 0.5 * U[:, 4:5]


U, U_test = torch.rand(n, d, generator=seeded(4)), torch.rand(500, d, generator=seeded(5))
level, spread = signal(U).mean(), signal(U).std()
Y = (signal(U) - level) / spread + 0.1 * torch.randn(n, 1, generator=seeded(6))
F_test = (signal(U_test) - level) / spread

settings = {
    "scales 1, [0, 1]": (probnn.BayesianNetwork(networks[d], normal), U, U_test),
    "BNNPrior, [-1, 1]": (probnn.priors.BNNPrior()(d, 1), 2 * U - 1, 2 * U_test - 1),
}
few = {"num_starts": 1, "steps": 50, "polish_steps": 5, "rounds": 2} if SMOKE else {}
laplace = probnn.Laplace(**few)
noise, error = {}, {}
for name, (prior, A, A_test) in settings.items():
    post = laplace.fit(prior, probnn.likelihoods.Gaussian(noise=None), A, Y, seed=0)
    clean, noisy = post.predict(A_test), post.predict(A_test, observation_noise=True)
    noise[name] = (noisy.variance - clean.variance).mean().sqrt().item()
    error[name] = (clean.mean - F_test).square().mean().sqrt().item()
    print(f"{name:<18} noise {noise[name]:.2f} (truth: 0.10), error of the mean {error[name]:.2f} (of 1)")

# %% [markdown]
# ## Five posteriors of one data set
#
# One input, two clusters of points with a gap between them, noise 0.1. A method of inference is an object with
# settings and one verb, `fit(prior, likelihood, X, Y) -> posterior`; so swapping it is one line.
#
# | method | what it gives | source |
# |---|---|---|
# | `HMC` | draws of weights and noise, exact for many draws | Duane et al. 1987; Neal 2011, arXiv 1206.1901 |
# | `Laplace` | a Gaussian at the mode, predictions linearised | MacKay 1992; Immer et al. 2021, arXiv 2008.08400 |
# | `DeepEnsemble` | modes, here anchored at prior draws | Lakshminarayanan et al. 2017; Pearce et al. 2020 |
# | `MeanFieldVI` | the KL-nearest Gaussian with independent weights | Blundell et al. 2015, arXiv 1505.05424 |
# | `Exact` | a GP in closed form, its hyper-parameters by MAP | Rasmussen and Williams 2006 |


# %%
def truth(x):
    return 0.9 * torch.sin(4 * x) + 0.4 * x


g = seeded(7)
X = torch.cat([torch.rand(12, 1, generator=g) * 0.55 - 1.0, torch.rand(12, 1, generator=g) * 0.6 + 0.4])
Y = truth(X) + 0.1 * torch.randn(X.shape, generator=g)
grid = torch.linspace(-1.2, 1.2, 201)

prior = probnn.priors.BNNPrior(hidden=(50,), scale_prior=None)(1, 1)  # one layer and fixed scales: quick to sample
kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
gp_prior = probnn.GaussianProcess(kernel, input_dim=1)
likelihood = probnn.likelihoods.Gaussian(noise=None)
methods = {
    "HMC": probnn.HMC(num_chains=16, num_warmup=20 if SMOKE else 200, num_samples=10 if SMOKE else 200),
    "Laplace": laplace,
    "DeepEnsemble": probnn.DeepEnsemble(size=16, anchored=True),
    "MeanFieldVI": probnn.MeanFieldVI(steps=100 if SMOKE else 1000),
    "Exact (GP)": probnn.Exact(optimize=True),
}
posteriors = {}
for name, method in methods.items():
    posteriors[name] = method.fit(gp_prior if "GP" in name else prior, likelihood, X, Y, seed=0)

# %%
fig, axes = plt.subplots(2, 3, figsize=(9, 5), sharex=True, sharey=True, layout="constrained")
panels = {"BNN prior": prior} | posteriors
colors = dict(zip(panels, (GREY, BLUE, GREEN, GOLD, RED, "#5e4b8b"), strict=True))
for ax, (name, process) in zip(axes.ravel(), panels.items(), strict=True):
    plot_functions(process, grid, num_functions=8, data=None if process is prior else (X, Y), color=colors[name], ax=ax)
    ax.plot(grid, truth(grid), "k--", lw=1)
    ax.set(title=name, xlabel="", ylabel="", ylim=(-2.6, 2.6))
plt.show()

# %% [markdown]
# Black dashes are the truth; bands are central 90 % intervals of $f$. HMC is the reference, because its only error is
# that of a finite number of draws. Laplace's Gaussian and the ensemble come close at the data and differ in the gap,
# one wider and one narrower. Mean-field VI has not learned the function at all: every weight that has to be known
# costs about a nat of its bound, 150 of them cost more than 24 points are worth, and so it keeps the prior and calls
# the data noise (Coker et al. 2022, arXiv 2202.11670). It does better with narrow networks and many data. Numbers for
# the middle of the gap and for the data:

# %%
gap, at_data = torch.tensor([[-0.05]]), X[::4]
print(f"{'':<14}{'sd in the gap':>14}{'sd at data':>12}{'noise':>8}{'seconds':>9}")
sd = {}
for name, post in posteriors.items():
    sd[name] = post.predict(gap).variance.sqrt().item(), post.predict(at_data).variance.sqrt().mean().item()
    total = post.predict(at_data, observation_noise=True).variance - post.predict(at_data).variance
    print(f"{name:<14}{sd[name][0]:>14.2f}{sd[name][1]:>12.3f}{total.mean().sqrt():>8.3f}{post.info.seconds:>9.1f}")

# %% [markdown]
# `post.info` tells what happened: seconds, acceptance, divergences, log evidence, warnings. For HMC the first
# question is whether the chains agree on the *function* (the [next tutorial](02_hmc_and_its_diagnostics.py) is
# about nothing else):

# %%
post = posteriors["HMC"]
worst = rhat(post.apply(post.theta, grid[::10, None])).max().item()
print(f"R-hat of f, worst of {len(grid[::10])} points: {worst:.3f}; divergences: {post.info.divergences}")
print(f"log evidence, network (Laplace): {posteriors['Laplace'].info.log_evidence:.1f}")
print(f"log evidence, GP:                {posteriors['Exact (GP)'].info.log_evidence:.1f}")

# %% [markdown]
# ## A posterior is again a prior
#
# Every one of those is a distribution over functions, so it can be asked, conditioned, saved and used as a prior,
# as far as its verbs reach. A **Gaussian process** is conditioned exactly, so data may come in pieces.

# %%
gp_posterior = posteriors["Exact (GP)"]
new_X = torch.tensor([[-0.1], [0.1]])
new_Y = truth(new_X)
at_once = gp_posterior.condition(new_X, new_Y)
in_turn = gp_posterior.condition(new_X[:1], new_Y[:1]).condition(new_X[1:], new_Y[1:])
difference = (at_once.predict(grid[:, None]).mean - in_turn.predict(grid[:, None]).mean).abs().max().item()
print(f"largest difference of the means: {difference:.1e}")

# %% [markdown]
# **Draws** are conditioned by weighting them with the likelihood of what is new. That is exact for infinitely many
# draws and honest for few new points: the effective sample size of the weights (Kish 1965), $1 / \sum_s w_s^2$,
# says how much is left, and below ten a `DegenerateWeightsWarning` says to fit again.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore", probnn.errors.DegenerateWeightsWarning)
    one, both = post.condition(new_X[:1], new_Y[:1]), post.condition(new_X, new_Y)
print(f"effective draws: {post.ess:.0f} at first, {one.ess:.0f} after one new point, {both.ess:.0f} after two")

# %% [markdown]
# A posterior with a **density**, such as Laplace's Gaussian over the weights, is a prior for other methods of
# inference too. Here HMC learns from the new points alone, with everything before them in the prior:

# %%
gaussian = posteriors["Laplace"]
noise_level = probnn.likelihoods.Gaussian(noise=0.1)
short = probnn.HMC(num_chains=8, num_warmup=10 if SMOKE else 100, num_samples=10 if SMOKE else 50)
sequential = short.fit(gaussian, noise_level, new_X, new_Y, seed=0)

fig, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True, layout="constrained")
for ax, (title, process, color) in zip(
    axes,
    (
        ("GP, conditioned", in_turn, "#5e4b8b"),
        ("HMC draws, reweighted", both, BLUE),
        ("HMC with Laplace's posterior as prior", sequential, GREEN),
    ),
    strict=True,
):
    plot_functions(process, grid, data=(X, Y), color=color, ax=ax)
    ax.plot(new_X, new_Y, "D", color=RED, ms=6, zorder=4)
    ax.plot(grid, truth(grid), "k--", lw=1)
    ax.set(title=title, ylabel="", ylim=(-2.6, 2.6))
plt.show()

# %% [markdown]
# ## To a file, and to BoTorch
#
# One file holds everything, draws and settings and priors, as plain
# [safetensors](https://github.com/huggingface/safetensors); reading it runs no code.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "post.safetensors"
    post.save(path)
    print(f"{path.stat().st_size / 1e6:.1f} MB")
    loaded = probnn.load(path)

# %% [markdown]
# And any process is a BoTorch model: `ProcessModel` wraps it as it stands, and a recipe such as
# `probnn.get_surrogate("bnn-hmc")` also scales inputs and outcomes. What follows is BoTorch's.

# %%
from botorch.acquisition import LogExpectedImprovement

model = probnn.ProcessModel(post)
improvement = LogExpectedImprovement(model, best_f=Y.max())(grid[:, None, None])
print(f"next point to try: {grid[improvement.argmax()]:.2f}")

# %% [markdown]
# ## What was claimed

# %%
for d in dimensions:
    old, new = table["scales 1, [0, 1]", d], table["BNNPrior, [-1, 1]", d]
    assert old.within_share < 0.05, "a network with scales 1 is nearly constant"
    assert old.axis_sd + 5 * old.standard_errors["axis_sd"] < new.axis_sd - 5 * new.standard_errors["axis_sd"]
    assert new.within_share > 0.25, "functions of the default prior vary"

for name in ("HMC", "Laplace", "DeepEnsemble", "Exact (GP)"):
    in_gap, near = sd[name]
    assert in_gap > 1.5 * near, f"{name} is less sure where there are no data"
if not SMOKE:
    flat_noise, good_noise = noise.values()
    assert flat_noise > 0.5 > 0.2 > good_noise, "a flat prior explains signal as noise"
    assert error["BNNPrior, [-1, 1]"] < 0.5 * error["scales 1, [0, 1]"]
    for name in ("Laplace", "DeepEnsemble"):
        assert 0.5 < sd[name][0] / sd["HMC"][0] < 2 and 0.8 < sd[name][1] / sd["HMC"][1] < 1.25, name
    assert sd["MeanFieldVI"][1] > 3 * sd["HMC"][1], "mean-field VI ignores the data"
    assert worst < 1.03, "the chains agree on the function"
assert difference < 1e-8, "conditioning a GP in pieces is conditioning it at once"
assert both.ess < one.ess < post.ess
assert torch.equal(loaded.predict(grid[:, None]).mean, post.predict(grid[:, None]).mean)
