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
# # HMC and its diagnostics
#
# Hamiltonian Monte Carlo is the reference among the methods of inference here: its draws are those of the
# posterior, up to a Monte Carlo error that can be estimated. This tutorial says how it works in probnn, how to see
# that it has worked, and what to do when it has not.

# %%
import os
import time
import warnings
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import torch

import probnn
from probnn.diagnostics import bfmi, ecdf_bands, ess, mcse, nested_rhat, rhat, sbc, summary
from probnn.inference import Target
from probnn.plots import plot_functions

SMOKE = "PROBNN_SMOKE" in os.environ  # small numbers of draws, to test that the tutorial runs
torch.set_default_dtype(torch.double)
plt.rcParams |= {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium"}
BLUE, RED, GREY, GOLD, GREEN = "#1f6f8b", "#d1495b", "#8d8d8d", "#c98a1b", "#4c8c6a"


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def truth(x):
    return 0.9 * torch.sin(4 * x) + 0.4 * x


g = seeded(7)
X = torch.cat([torch.rand(12, 1, generator=g) * 0.55 - 1.0, torch.rand(12, 1, generator=g) * 0.6 + 0.4])
Y = truth(X) + 0.1 * torch.randn(X.shape, generator=g)
X_test = torch.linspace(-1, 1, 21)[:, None]
prior = probnn.priors.BNNPrior(hidden=(50,), scale_prior=None)(1, 1)  # None: fixed scales, the quickest to sample
likelihood = probnn.likelihoods.Gaussian(noise=None)

# %% [markdown]
# ## How it works
#
# What is sampled is $z = (\theta, \psi)$, the coordinates of the function and those of the likelihood (here the log
# of the noise), with the joint log density
#
# $$ \log\pi(z) = \log p(\theta) + \log p(\psi) + \sum_i \log p(y_i \mid f_\theta(x_i), \psi). $$
#
# A momentum $p \sim N(0, M)$ joins it, and the Hamiltonian $H(z, p) = -\log\pi(z) + \tfrac12 p^\top M^{-1} p$ is
# followed with $L$ leapfrog steps of size $\varepsilon$. The end is accepted with probability
# $\min(1, e^{-\Delta H})$, else the chain stays (Duane et al. 1987; Neal 2011, arXiv 1206.1901). A step costs one
# gradient, and gradients are nearly all of the cost. So **all chains go in one batch**: their gradients are a few
# batched matrix products.

# %%
target = Target(prior, likelihood, X, Y)
for chains in (1, 16, 64):
    z = target.start((chains,), seeded(0))
    target.value_and_grad(z)
    begin, repeats = time.perf_counter(), 20
    for _ in range(repeats):
        target.value_and_grad(z)
    print(f"{chains:>3} chains: {1e6 * (time.perf_counter() - begin) / repeats / chains:6.1f} us a gradient and chain")

# %% [markdown]
# One `fit` goes through three stages.
#
# 1. **Start.** Prior draws of $\theta$, which are overdispersed as R-hat wants them, follow the gradient for 150
#    steps of Adam. $\psi$ is held at its prior median meanwhile: a noise optimised along with an unfinished
#    function explains that function's error as noise, and chains come back from there late or never.
# 2. **Warm-up**, which adapts three things and is thrown away. The *step size* follows the chains' mean acceptance
#    by dual averaging to a target of 0.8 (Nesterov 2009; Hoffman and Gelman 2014, arXiv 1111.4246). The *trajectory
#    length* climbs the rate of the ChEES criterion, the expected squared change of the squared distance from the
#    mean $\tfrac14\mathrm E\big[(|q_t|^2 - |q_0|^2)^2\big]$ for its cost (Hoffman, Radul and Sountsov 2021). Each
#    transition uses $t = uT$ of it with $u$ jittered over $(0, 1)$, because no fixed length suits every frequency:
#    a trajectory of a whole period ends where it began. The *masses* are variances pooled over chains, and over
#    hidden units which could change places: a unit's own variance means nothing where it can be any unit.
# 3. **Sampling** with all of that fixed, so that the chain is reversible and its law is the posterior.

# %%
length = {"num_warmup": 40, "num_samples": 20} if SMOKE else {"num_warmup": 200, "num_samples": 300}
hmc = probnn.HMC(num_chains=16, **length)
post = hmc.fit(prior, likelihood, X, Y, seed=0)  # progress=True shows a bar
info = post.info
print(f"{info.seconds:.0f} s, {info.gradients:,} gradients")
print(f"step size {info.step_size:.3f}, longest trajectory {info.trajectory:.2f}")

# %%
trace = info.trace
fig, axes = plt.subplots(1, 3, figsize=(9, 2.7), layout="constrained")
adapted = (("step size $\\varepsilon$", "step_size"), ("longest trajectory $T$", "trajectory"))
for ax, (title, name) in zip(axes, adapted, strict=False):
    ax.plot(trace[f"warmup_{name}"], color=BLUE)
    ax.axhline(getattr(info, name), color=RED, lw=1, ls="--")
    ax.set(title=title, xlabel="transition of the warm-up", ylim=(0, None))
axes[2].plot(trace["warmup_num_leapfrog"], color=GREY, lw=0.7)
axes[2].set(title="leapfrog steps $L = \\lceil uT / \\varepsilon \\rceil$", xlabel="transition of the warm-up")
plt.show()

# %% [markdown]
# ## What the sampler says about itself
#
# - **Acceptance** near its target. Far below: the warm-up was too short, or the posterior has places where the step
#   size does not do.
# - **Divergences**, trajectories whose energy error exceeds 1000, where the integrator has left its region of
#   stability. A few in a thousand happen; more than one in fifty gives a `DivergenceWarning`, and the draws may
#   be missing regions of high curvature (Betancourt 2017, arXiv 1701.02434).
# - **E-BFMI** of each chain, $\sum_s (E_s - E_{s-1})^2 / \sum_s (E_s - \bar E)^2$. Fresh momenta change the energy
#   by about as much as energies differ if it is near 1. Below 0.3 the chain creeps through energies, which is a
#   sign of heavy tails or a funnel (Betancourt 2016, arXiv 1604.00695).

# %%
energy = trace["energy"]
print(f"acceptance {info.acceptance:.2f}, divergences {info.divergences} of {energy.numel()}")
print("E-BFMI of the chains:", " ".join(f"{v:.2f}" for v in bfmi(energy).tolist()))

# %% [markdown]
# ## What the draws say: R-hat, ESS and MCSE of function values
#
# **R-hat** compares the variance between chains with that within, $\hat R = \sqrt{\tfrac{N-1}{N} + B / W}$ where
# $B$ is the variance of the chains' means and $W$ the mean of their variances. Chains are split in halves and draws
# replaced by normal scores of their ranks, so that heavy tails do no harm; the same is done with distances from the
# median, so that chains which differ only in scale are seen; and the larger is reported. Below 1.01 is the demand
# for what goes into a paper. The **effective sample size** counts draws at their worth in independent ones, and the
# **Monte Carlo standard error** is how far the estimate itself is still uncertain,
# $\mathrm{sd} / \sqrt{\mathrm{ESS}}$ for a mean (all three: Vehtari et al. 2021, arXiv 1903.08008).
#
# What they are computed *of* matters more than the threshold: of what will be used, so of **function values**.

# %%
f = post.apply(post.theta, X_test)[..., 0]  # chains x draws x points
table = summary(f)
print(f"{'x':>6}" + "".join(f"{name:>11}" for name in table))
for i in range(0, len(X_test), 4):
    print(f"{X_test[i, 0]:>6.1f}" + "".join(f"{column[i]:>11.3f}" for column in table.values()))
print(f"\nworst of all points: R-hat {rhat(f).max():.3f}, bulk ESS {ess(f).min():.0f} of {post.num_draws} draws")
noise = post.psi.exp()
print(f"noise: R-hat {rhat(noise).item():.3f}, mean {noise.mean():.3f} +- {mcse(noise).item():.3f} (MCSE)")

# %% [markdown]
# ### The last layer integrated out
#
# Given everything else, the last layer of a network with a Gaussian likelihood is a Bayesian linear regression, whose
# weights can be integrated out in closed form. `collapse_last_layer=True` samples the rest, and then draws the last
# layer from its exact conditional law: the draws follow the same posterior. Gone are its stiffest directions, those in
# which the data hold the weights to within the noise, so that steps are longer and trajectories shorter.

# %%
collapsed = replace(hmc, collapse_last_layer=True).fit(prior, likelihood, X, Y, seed=0)
f_collapsed = collapsed.apply(collapsed.theta, X_test)[..., 0]
for name, p, values in (("all layers", post, f), ("last integrated out", collapsed, f_collapsed)):
    print(f"{name:<20} R-hat {rhat(values).max():.3f}, bulk ESS {ess(values).min():5.0f}", end=", ")
    print(f"{p.info.trace['num_leapfrog'].double().mean():3.0f} leapfrog steps a draw, {p.info.seconds:.0f} s")

# %% [markdown]
# ### Why not of weights
#
# Hidden units can change places, and with $\tanh$ the signs of all weights into and out of a unit can be flipped,
# both without changing the function. So every mode of the posterior over the weights of $H$ units has $2^H H!$
# copies, which is $3 \times 10^{79}$ for the network above. Look at three units, where there are 48:

# %%
H = 3
small = probnn.BayesianNetwork(
    probnn.MLP(input_dim=1, hidden=(H,)), probnn.priors.NormalWeights(weight_scale=(4.0, 2.0), bias_scale=(2.0, 0.5))
)
copies = hmc.fit(small, probnn.likelihoods.Gaussian(noise=0.1), X, Y, seed=0)
blocks = copies.layout.unflatten(copies.theta)
sign, order = torch.tensor([-1.0, 1.0, 1.0]), torch.tensor([2, 0, 1])
other = {
    "layers.0.weight": (blocks["layers.0.weight"] * sign[:, None])[..., order, :],
    "layers.0.bias": (blocks["layers.0.bias"] * sign)[..., order],
    "layers.1.weight": (blocks["layers.1.weight"] * sign)[..., order],
}
mirrored = copies.layout.flatten(blocks | other)
change_of_f = (copies.apply(mirrored, X_test) - copies.apply(copies.theta, X_test)).abs().max().item()
print(f"largest change of a weight: {(mirrored - copies.theta).abs().max():.1f}, of f: {change_of_f:.1e}")

# %%
f_small = copies.apply(copies.theta, X_test)[..., 0]
with warnings.catch_warnings():  # short chains may sit still in a weight
    warnings.simplefilter("ignore", probnn.errors.ConvergenceWarning)
    of_weights, of_function = rhat(copies.theta), rhat(f_small)
fig, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
axes[0].plot(blocks["layers.0.weight"][::4, :, 0, 0].T, lw=0.8)
axes[0].set(title="a weight, four chains", xlabel="draw")
axes[1].plot(f_small[::4, :, len(X_test) // 2].T, lw=0.8)
axes[1].set(title="$f(0)$, the same chains", xlabel="draw")
axes[2].plot(of_weights, "o", color=GREY, ms=4, label="weights and biases")
axes[2].plot(of_function, "o", color=BLUE, ms=4, label="$f$ at 21 points")
axes[2].set(title="R-hat", xlabel="which", ylim=(0.95, None))
axes[2].legend(frameon=False)
plt.show()

# %% [markdown]
# Chains sit in different copies and visit few of them, so R-hat of their weights is large; and the function, which
# is all that is ever used, is the same in all. (The last grey point is the bias of the output, which no symmetry
# moves.) In wide networks R-hat of the weights is often fine, as each hardly matters; that means as little.
# Function values, the noise and the scales of `HierarchicalWeights` know no symmetries, and can be judged.
#
# ## Many short chains: nested R-hat
#
# With 64 chains in a batch, one draw of each is a sample of 64. What has to be known is only whether the warm-up
# was long enough to forget the start, and the usual R-hat cannot tell from chains of a few draws. **Nested R-hat**
# can: the chains start from $K$ points, $M$ from each, and those from one point form a super-chain. With $B$ the
# variance of the super-chains' means and $W$ the variance within super-chains,
#
# $$ \hat R_\nu = \sqrt{1 + B / W}. $$
#
# If each chain gives one draw, it is near $\sqrt{1 + 1/M}$ once the starting points are forgotten (Margossian et al.
# 2022, arXiv 2110.13017). `init=` takes draws of any process with as many parameters and repeats them for as many
# chains as there are: 8 draws of the prior make 8 super-chains of 8. A `callback` sees every transition, here from the
# very first, before anything is adapted.

# %%
K, M, transitions = 8, 8, 10 if SMOKE else 60
states = []
many = replace(hmc, num_chains=K * M, num_warmup=transitions, num_samples=1)
starts = prior.draws(K, seed=1)
with warnings.catch_warnings():  # its one draw a chain tells HMC nothing
    warnings.simplefilter("ignore", probnn.errors.DivergenceWarning)
    many.fit(prior, likelihood, X, Y, init=starts, seed=2, callback=lambda step, total, state: states.append(state.z))
theta = torch.stack(states, 1)[..., : prior.num_parameters]  # chains x transitions x parameters
at_each = prior.apply(theta, X_test)[..., 0]
with warnings.catch_warnings():  # a super-chain none of whose chains has moved has no nested R-hat
    warnings.simplefilter("ignore", probnn.errors.ConvergenceWarning)
    nested = torch.stack([nested_rhat(at_each[:, i : i + 1], K).nanmean() for i in range(at_each.shape[1])])
fig, ax = plt.subplots(figsize=(6.5, 2.9), layout="constrained")
ax.semilogy(torch.arange(1, len(nested) + 1), nested - 1, color=BLUE, marker="o", ms=3)
ax.axhline((1 + 1 / M) ** 0.5 - 1, color="black", lw=1, ls=":", label="starting points forgotten")
ax.set(xlabel="transition", ylabel="nested R-hat of $f$, minus 1\n(mean over $x$)")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## ArviZ
#
# `to_arviz` labels draws, sampler statistics, predictions, prior and data, and everything ArviZ has for them works:
# summaries, rank plots, energy plots, model comparison by `arviz.loo`. The variable to look at is `f` at `X_test`.

# %%
import arviz

from probnn.bridges import arviz_summary

data = post.to_arviz(X_test=X_test[::4], X=X, Y=Y)
arviz.plot_energy(data, bfmi=False, figsize=(6.5, 2.7), textsize=9)
plt.title("the second should not be much narrower than the first", size="medium")
plt.show()
arviz_summary(data, prob=0.9).round(3)

# %% [markdown]
# ## A warm start
#
# When a few data come in, as in Bayesian optimisation, the last posterior is the place to begin. `init=post` gives
# every chain a draw of it, and takes over step size, trajectory and masses; a quarter of the warm-up is enough.

# %%
X_all = torch.cat([X, torch.tensor([[-0.1], [0.15], [0.3]])])
Y_all = torch.cat([Y, truth(X_all[-3:]) + 0.1 * torch.randn(3, 1, generator=seeded(3))])
refits = {}
for name, begin_at in (("cold", None), ("warm", post)):
    refits[name] = again = hmc.fit(prior, likelihood, X_all, Y_all, init=begin_at, seed=4)
    worst = rhat(again.apply(again.theta, X_test)).max()
    print(f"{name}: {again.info.gradients:>9,} gradients, {again.info.seconds:5.1f} s, R-hat {worst:.3f}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
line = torch.linspace(-1.2, 1.2, 201)
plot_functions(post, line, data=(X, Y), ax=axes[0]).set(title="before", ylim=(-2.6, 2.6))
plot_functions(refits["warm"], line, data=(X_all, Y_all), ax=axes[1]).set(title="three points later", ylabel="")
_ = [ax.plot(line, truth(line), "k--", lw=1) for ax in axes]
plt.show()

# %% [markdown]
# ## Is it the right posterior? Simulation-based calibration
#
# Chains may agree on a wrong answer. If parameters are drawn from the prior and data from the likelihood, the truth
# and exact posterior draws are exchangeable, so that the *rank* of the truth among $L$ draws is uniform on
# $0, \dots, L$ whatever the model (Talts et al. 2018, arXiv 1804.06788). A method whose ranks are not uniform is
# wrong about this prior and likelihood: ranks in the middle mean too wide, at both ends too narrow, on one side
# biased. `sbc` ranks function values, the likelihood's parameters, and the log likelihood of the data, without
# which a method that ignores the data would pass (Modrak et al. 2023, arXiv 2211.02383).
#
# HMC does all replications in one batch. The network is tiny, so that there can be many. For contrast, a method
# that takes the noise to be a third of what it is:


# %%
@dataclass(frozen=True)
class Overconfident:
    """HMC with a third of the noise."""

    hmc: probnn.HMC

    def fit_batch(self, prior, likelihood, X, Y, *, noise_variance=None, seed=0):
        sure = replace(likelihood, noise=likelihood.noise / 3)
        return self.hmc.fit_batch(prior, sure, X, Y, noise_variance=noise_variance, seed=seed)


tiny = probnn.BayesianNetwork(probnn.MLP(input_dim=1, hidden=(5,)), probnn.priors.NormalWeights(weight_scale=2.0))
fixed = probnn.likelihoods.Gaussian(noise=0.3)
inferred = probnn.likelihoods.Gaussian(noise_median=0.3, noise_spread=0.5)
X_sim, X_rank = torch.linspace(-1, 1, 10)[:, None], torch.tensor([[-0.9], [0.05], [0.7]])
R, L = (40, 19) if SMOKE else (300, 99)
quick = probnn.HMC(num_chains=4, num_warmup=50 if SMOKE else 150, num_samples=10 if SMOKE else 100)
right = sbc(tiny, inferred, quick, X_sim, X_rank, num_replications=R, num_draws=L, seed=0)
wrong = sbc(tiny, fixed, Overconfident(quick), X_sim, X_rank, num_replications=R, num_draws=L, seed=0)
bins = 5 if SMOKE else 10
print("smallest p-value of uniformity, times the number of quantities:", end=" ")
print(f"{right.p_value(bins):.2g} for HMC, {wrong.p_value(bins):.2g} with a third of the noise")

# %%
quantities = {
    "$f(0.05)$": right.ranks["f"][:, 1, 0],
    "noise": right.ranks["psi"][:, 0],
    "log likelihood": right.ranks["log_likelihood"],
    "$f(0.05)$, overconfident": wrong.ranks["f"][:, 1, 0],
}
points, lower, upper = ecdf_bands(R, L)
fig, axes = plt.subplots(2, 4, figsize=(9, 4.2), sharey="row", layout="constrained")
for (name, ranks), (top, bottom) in zip(quantities.items(), axes.T, strict=True):
    color = RED if "over" in name else BLUE
    top.hist(ranks, bins=bins, range=(-0.5, L + 0.5), color=color, alpha=0.8, rwidth=0.95)
    top.axhline(R / bins, color="black", lw=1, ls=":")
    top.set(title=name, xticks=(0, L))
    below = (ranks[:, None] < torch.arange(1, L + 1)).double().mean(0)
    bottom.fill_between(points, lower - points, upper - points, color=GREY, alpha=0.3, lw=0)
    bottom.plot(points, below - points, color=color)
    bottom.set(xlabel="rank / $L$", xticks=(0, 1))
axes[0, 0].set_ylabel("replications")
axes[1, 0].set_ylabel("ECDF $-$ uniform")
plt.show()

# %% [markdown]
# Above, histograms of the ranks; below, their distribution functions minus that of uniform ranks, with bands that
# hold the whole curve in 95 % of calibrated cases (Sailynoja et al. 2022, arXiv 2103.10522).
#
# ## When R-hat is bad
#
# | what you see | what it is | what to do |
# |---|---|---|
# | R-hat of $f$ at 1.05, no divergences | too few draws | more `num_samples`, or go on with `init=post` |
# | acceptance far from its target | warm-up too short | double `num_warmup` |
# | leapfrog steps at `max_leapfrog` | many data with little noise | raise it; look at the units of Y |
# | divergences | high curvature: random scales, small noise | `collapse_last_layer=True`; `target_accept=0.9` |
# | E-BFMI below 0.3 | heavy tails: energies change slowly | normal in place of Student-t or half-Cauchy |
# | one chain far from all others | a mode of its own, or stuck | look at `f[chain]`; more chains |
# | R-hat of single weights | symmetry | diagnose $f$ |
#
# The first is the usual one. With `init=post` a posterior is continued where it stopped.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that the hasty run has not converged, and diverges, is what is shown
    quicker = replace(hmc, collapse_last_layer=True)
    hasty = replace(quicker, num_warmup=10, num_samples=20).fit(prior, likelihood, X, Y, seed=5)
    patient = replace(quicker, num_warmup=2 * hmc.num_warmup).fit(prior, likelihood, X, Y, init=hasty, seed=6)
    for name, p in (("hasty", hasty), ("continued", patient)):
        worst = rhat(p.apply(p.theta, X_test)).max().item()
        print(f"{name:<10} R-hat {worst:.3f}, {p.info.divergences} divergent, converged: {p.info.converged}")

# %% [markdown]
# ## What was claimed

# %%
assert change_of_f < 1e-10, "a symmetry of the network leaves the function alone"
assert wrong.p_value(bins) < 1e-3, "calibration finds a method that is too sure of itself"
assert right.p_value(bins) > 1e-3, "and lets HMC pass"
assert refits["warm"].info.gradients < refits["cold"].info.gradients, "a warm start is cheaper"
if not SMOKE:
    assert nested[0] > 1.5 > nested[-1], "starting points are forgotten"
    assert rhat(f).max() < 1.03 and ess(f).min() > 400, "16 chains of 300 draws suffice for the function"
    gap = (f.mean((0, 1)) - f_collapsed.mean((0, 1))) / (mcse(f) ** 2 + mcse(f_collapsed) ** 2).sqrt()
    assert gap.abs().max() < 5, "with the last layer integrated out the posterior is the same"
    assert rhat(f_collapsed).max() < 1.03
    assert collapsed.info.gradients < info.gradients, "and a draw of it costs fewer gradients"
    assert bfmi(energy).min() > 0.3
    assert info.divergences < 0.01 * energy.numel()
    assert of_function.max() < 1.05 < 1.3 < of_weights.max(), "R-hat of weights says nothing about the function"
    assert (nested[-20:].mean() - (1 + 1 / M) ** 0.5).abs() < 0.03, "and then nested R-hat is what it should be"
    means = [refits[name].predict(X_test).mean for name in ("cold", "warm")]
    errors = [mcse(refits[name].apply(refits[name].theta, X_test)[..., 0]) for name in ("cold", "warm")]
    z = (means[0] - means[1]).squeeze(-1) / (errors[0] ** 2 + errors[1] ** 2).sqrt()
    assert z.abs().max() < 5, "cold and warm starts reach the same posterior, within Monte Carlo error"
    assert patient.info.converged
