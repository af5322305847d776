"""The picture of the README and the front page: `python docs/make_figures.py` writes docs/_static/posterior.png."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from botorch.acquisition import LogExpectedImprovement

import probnn
from probnn.plots import plot_functions

BLUE, RED, GREY = "#1f6f8b", "#d1495b", "#8d8d8d"


def truth(x: torch.Tensor) -> torch.Tensor:
    """What is to be learned."""
    return 0.9 * torch.sin(4 * x) + 0.4 * x


def main(path: Path) -> None:
    """Fit a small network and draw it before the data, after the data, and as a BoTorch model."""
    torch.set_default_dtype(torch.double)
    generator = torch.Generator().manual_seed(7)
    left, right = torch.rand(2, 8, 1, generator=generator)
    X = torch.cat([0.55 * left - 1.0, 0.6 * right + 0.4])
    Y = truth(X) + 0.1 * torch.randn(X.shape, generator=generator)
    x = torch.linspace(-1.1, 1.1, 221)

    prior = probnn.priors.BNNPrior()(1, 1)
    posterior = probnn.HMC(num_chains=16, num_warmup=300, num_samples=300).fit(
        prior, probnn.likelihoods.Gaussian(noise=None), X, Y, seed=0, progress=True
    )
    model = probnn.ProcessModel(posterior)
    with torch.no_grad():
        improvement = LogExpectedImprovement(model, best_f=Y.max())(x[:, None, None]).exp()

    plt.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
    fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.1), sharey=True, layout="constrained")
    plot_functions(prior.draws(4000), x, num_functions=10, color=GREY, ax=axes[0])  # many draws: a smooth band
    for ax in axes[1:]:
        plot_functions(posterior, x, num_functions=10 if ax is axes[1] else 0, data=(X, Y), color=BLUE, ax=ax)
        ax.plot(x, truth(x), color="black", lw=1, ls="--")
        ax.set_ylabel("")
    best, low, high = x[improvement.argmax()].item(), -2.6, 2.6
    axes[2].fill_between(x, low, low + 1.1 * improvement / improvement.max(), color=RED, alpha=0.35, lw=0)
    axes[2].plot([best, best], [low, 1.85], color=RED, lw=1, ls=":")
    axes[2].text(best, 2.2, "expected improvement:\ntry here next", color=RED, ha="center", va="center", size="small")
    titles = ("prior: functions before any data", "posterior, by HMC", "the posterior as a BoTorch model")
    for ax, title in zip(axes, titles, strict=True):
        ax.set(xlim=(-1.1, 1.1), ylim=(low, high))
        ax.set_title(title, size="medium")
    fig.savefig(path, dpi=130)


if __name__ == "__main__":
    main(Path(__file__).parent / "_static" / "posterior.png")
