"""HMC against the NUTS of numpyro and Pyro: effective draws of the function per CPU second.

A network of one hidden layer of 50 tanh units, 100 points in 4 dimensions, known noise .1, standard
normal weights with fan-in scaling. The figure is the smallest effective sample size of the function at
20 test points, divided by the CPU time of the whole run, warm-up (and compilation) included. All
samplers are judged by the same diagnostics, and ours must have split R-hat below 1.01. `collapsed` integrates
the last layer out. One chain cannot see what many see between them, which flatters it.

How stiff the posterior is depends on the data, so the last table repeats the collapsed sampler and numpyro on data
drawn by other seeds. The other tables: microseconds of a density with its gradient, and seconds of a surrogate's refit.
"""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor

import probnn
from probnn.diagnostics import ess, rhat
from probnn.errors import PrecisionWarning
from probnn.inference import Target
from probnn.inference.chains import keep_heap
from probnn.inference.collapsed import CollapsedTarget

from ._common import Report

NOISE, WIDTH, N, D = 0.1, 50, 100, 4


def problem(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, outcomes and test inputs."""
    g = torch.Generator().manual_seed(seed)
    X = 4 * torch.rand(N, D, generator=g, dtype=torch.float64) - 2
    w = torch.randn(D, 1, generator=g, dtype=torch.float64) / math.sqrt(D)
    Y = (
        torch.sin(2 * X @ w)
        + 0.3 * torch.cos(3 * X[:, :1])
        + NOISE * torch.randn(N, 1, generator=g, dtype=torch.float64)
    )
    Z = 5 * torch.rand(20, D, generator=g, dtype=torch.float64) - 2.5
    return X.to(dtype), Y.to(dtype), Z.to(dtype)


def prior(dtype: torch.dtype = torch.float64) -> probnn.BayesianNetwork:
    """The network and its prior."""
    return probnn.BayesianNetwork(probnn.MLP(input_dim=D, hidden=(WIDTH,)), probnn.priors.NormalWeights(), dtype=dtype)


def row(name: str, f: Tensor, seconds: float, **more: Any) -> dict[str, Any]:
    """One row of the table, from function values ``C x S x T``."""
    smallest = ess(f).min().item()
    return {
        "sampler": name,
        "chains": f.shape[0],
        "draws": f.shape[1],
        "cpu s": seconds,
        "R-hat": rhat(f).max().item(),
        "min ESS": smallest,
        "min ESS / cpu s": smallest / seconds,
        "mean f": f.mean().item(),
        "leapfrogs / draw": None,
        **more,
    }


def ours(
    chains: int, warmup: int, samples: int, dtype: torch.dtype = torch.float64, collapse: bool = False, data: int = 0
) -> dict[str, Any]:
    """This library's HMC."""
    X, Y, Z = problem(dtype, data)
    method = probnn.HMC(num_chains=chains, num_warmup=warmup, num_samples=samples, collapse_last_layer=collapse)
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)  # single precision is one of the two things measured
        posterior = method.fit(prior(dtype), _gaussian(), X, Y, seed=0)
    seconds = time.process_time() - started
    f = posterior.apply(posterior.theta, Z).squeeze(-1)
    kind = "HMC, collapsed," if collapse else "HMC"
    more = {"leapfrogs / draw": posterior.info.trace["num_leapfrog"].double().mean().item()}  # type: ignore[attr-defined]
    return row(f"probnn {kind} {warmup}+{samples}, {str(dtype).removeprefix('torch.')}", f, seconds, **more)


def numpyro_nuts(warmup: int, samples: int, data: int = 0) -> dict[str, Any]:
    """numpyro's NUTS, one chain, single precision as is its default."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp
    from numpyro.infer import MCMC, NUTS

    X, Y, Z = (jnp.asarray(t.numpy(), dtype=jnp.float32) for t in problem(seed=data))

    def f(w1: Any, b1: Any, w2: Any, b2: Any, x: Any) -> Any:
        return jnp.tanh(x @ w1 / math.sqrt(D) + b1) @ w2 / math.sqrt(WIDTH) + b2

    def model(x: Any, y: Any) -> None:
        w1 = numpyro.sample("w1", dist.Normal(0, 1).expand([D, WIDTH]).to_event(2))
        b1 = numpyro.sample("b1", dist.Normal(0, 1).expand([WIDTH]).to_event(1))
        w2 = numpyro.sample("w2", dist.Normal(0, 1).expand([WIDTH]).to_event(1))
        b2 = numpyro.sample("b2", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(f(w1, b1, w2, b2, x), NOISE), obs=y)

    started = time.process_time()
    mcmc = MCMC(NUTS(model), num_warmup=warmup, num_samples=samples, progress_bar=False)
    mcmc.run(jax.random.PRNGKey(0), X, Y[:, 0])
    draws = mcmc.get_samples()
    jax.block_until_ready(draws)
    seconds = time.process_time() - started
    values = jax.vmap(lambda s: f(s["w1"], s["b1"], s["w2"], s["b2"], Z))(draws)
    return row(f"numpyro NUTS {warmup}+{samples}", torch.tensor(values.tolist()).double().unsqueeze(0), seconds)


def pyro_nuts(limit: float) -> dict[str, Any]:
    """Pyro's NUTS, one chain, jitted; the run is as long as `limit` seconds allow."""
    import pyro
    from pyro.infer import MCMC, NUTS

    X, Y, Z = problem(torch.float32)
    network, process = prior(torch.float32), probnn.bridges.pyro.to_pyro(prior(torch.float32), _gaussian())

    def run(length: int) -> tuple[Any, float]:
        pyro.set_rng_seed(0)
        mcmc = MCMC(
            NUTS(process, jit_compile=True, ignore_jit_warnings=True, max_tree_depth=10),
            num_samples=length, warmup_steps=length, num_chains=1, disable_progbar=True,
        )  # fmt: skip
        started = time.process_time()
        mcmc.run(X, Y)
        return mcmc, time.process_time() - started

    length = 5
    mcmc, seconds = run(length)
    # Early warm-up takes small steps: a run twice as long takes about twice the time or more.
    while seconds * 2.5 < limit / 2:
        length *= 2
        limit -= seconds
        mcmc, seconds = run(length)
    theta = mcmc.get_samples(group_by_chain=True)["theta"].reshape(1, length, -1)
    f = network.apply(theta, Z).squeeze(-1).double()
    return row(f"Pyro NUTS {length}+{length}", f, seconds)


def _gaussian() -> probnn.likelihoods.Gaussian:
    return probnn.likelihoods.Gaussian(noise=NOISE)


def gradient(rounds: int) -> list[dict[str, Any]]:
    """Microseconds a chain of the log density and its gradient at 64 chains, interleaved, best of rounds."""
    keep_heap(torch.device("cpu"))  # as every fit does
    best: dict[str, float] = {}
    calls = {}
    for dtype in (torch.float32, torch.float64):
        X, Y, _ = problem(dtype)
        target = Target(prior(dtype), _gaussian(), X, Y)
        z = target.start((64,), torch.Generator().manual_seed(0))

        def autograd(target: Target = target, z: Tensor = z) -> None:
            leaf = z.detach().requires_grad_(True)
            torch.autograd.grad(target.log_prob(leaf).sum(), leaf)

        name = str(dtype).removeprefix("torch.")
        calls[f"{name}, this library"] = lambda target=target, z=z: target.value_and_grad(z)
        calls[f"{name}, autograd"] = autograd
        collapsed = CollapsedTarget(prior(dtype), _gaussian(), X, Y)
        rest = collapsed.start((64,), torch.Generator().manual_seed(0))
        calls[f"{name}, last layer integrated out"] = lambda t=collapsed, z=rest: t.value_and_grad(z)
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.process_time()
            for _ in range(20):
                call()
            taken = (time.process_time() - started) / 20 / 64 * 1e6
            best[name] = min(best.get(name, math.inf), taken)
    return [{"gradient": name, "us a chain": value} for name, value in best.items()]


def refit(rounds: int) -> list[dict[str, Any]]:
    """Seconds of a bnn-hmc refit in a loop, n = 50, d = 6, from the fit before."""
    g = torch.Generator().manual_seed(0)
    X = torch.rand(50 + rounds, 6, generator=g, dtype=torch.float64)
    Y = torch.sin(6 * X[:, :1]) + X[:, 1:2] ** 2 + X.sum(-1, keepdim=True)
    bounds = torch.tensor([[0.0] * 6, [1.0] * 6], dtype=torch.float64)
    recipe, rows, model = probnn.get_surrogate("bnn-hmc"), [], None
    for i in range(rounds + 1):
        started = time.process_time()
        model = recipe.fit(X[: 49 + i], Y[: 49 + i], bounds=bounds, seed=0, init=model)
        rows.append({"refit": "cold" if i == 0 else f"warm {i}", "n": 49 + i, "cpu s": time.process_time() - started})
    return rows


def other_data(count: int, size: tuple[int, int, int], length: int) -> list[dict[str, Any]]:
    """The collapsed sampler and numpyro in single precision, by the seed of the data."""
    rows = []
    for data in range(1, count + 1):
        own, peer = ours(*size, torch.float32, collapse=True, data=data), numpyro_nuts(length, length, data)
        over = own["min ESS / cpu s"] / peer["min ESS / cpu s"]
        rows += [{"data": data, **own, "over numpyro": over}, {"data": data, **peer, "over numpyro": 1.0}]
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    report = Report("hmc", __doc__, arguments)
    torch.set_num_threads(1)
    report.table("Joint density and gradient, 64 chains", gradient(5 if report.quick else 30))
    report.table("Refit of the surrogate bnn-hmc", refit(1 if report.quick else 4))
    short = report.quick
    # numpyro and Pyro run in single precision; so does the first row. 700 draws a chain bring R-hat below 1.01.
    size = (16, 100, 100) if short else (32, 200, 700)
    rows = [ours(*size, torch.float32), ours(*size, torch.float64)]
    wide = (16, 100, 100) if short else (64, 100, 500)
    rows += [ours(*wide, dtype, collapse=True) for dtype in (torch.float32, torch.float64)]
    peer = numpyro_nuts(100 if short else 500, 100 if short else 500)
    rows.append(peer)
    rows.append(pyro_nuts(30 if short else 300))
    for r in rows:
        r["over numpyro"] = r["min ESS / cpu s"] / peer["min ESS / cpu s"]
    report.table("Effective draws of the function", rows)
    report.table("The same, other data", other_data(1 if short else 3, wide, 100 if short else 500))
    print(f"\nwritten to {report.write()}")


if __name__ == "__main__":
    main()
