"""What the benchmark `classification` fits and how it scores: data sets, priors, samplers, scores of probabilities."""

from __future__ import annotations

import gzip
import math
import time
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import probnn
from probnn import diagnostics, likelihoods, priors
from probnn import random as rnd

FOLDS = 5
RADII, SPREAD = (1.0, 2.0), 0.35  # of the rings
FIXED, MATCHED, HIERARCHICAL = "fixed", "matched", "matched hierarchical"
# Targets with known hyper-parameters, (variance, length scale), by the name of their matched prior.
TARGETS = {f"matched ({v:g}, {length:g})": (v, length) for v in (1.0, 32.0) for length in (1.0, 4.0, 16.0)}


@dataclass(frozen=True)
class Settings:
    """How much is spent on a fit; :meth:`tiny` is for tests.

    Args:
        num_chains, num_warmup, num_samples, max_leapfrog, start_steps: Of HMC, in two dimensions.
        sghmc: Steps of warm-up, draws and steps from draw to draw of SGHMC, in two dimensions.
        auto_steps, energy_steps, shrinkage, measured: Of matching, in two dimensions.
        hidden: Widths of the network in two dimensions.
        ring_rows: Training and test rows of the rings.
        images: Training images, at most.
        batch: Images of a minibatch.
        image_sghmc: As `sghmc`, and the steps of the start.
        image_match: Steps, draws and points of matching to images.
    """

    num_chains: int = 4
    num_warmup: int = 100
    num_samples: int = 100
    max_leapfrog: int = 32
    start_steps: int = 50
    sghmc: tuple[int, int, int] = (1500, 100, 25)
    auto_steps: int = 100
    energy_steps: int = 150
    shrinkage: float = 0.001
    measured: int = 100
    hidden: tuple[int, ...] = (50, 50)
    ring_rows: tuple[int, int] = (200, 2000)
    images: int = 8000
    batch: int = 64
    image_sghmc: tuple[int, int, int, int] = (1000, 20, 50, 300)
    image_match: tuple[int, int, int] = (150, 64, 32)

    @classmethod
    def tiny(cls) -> Settings:
        """Everything runs and nothing is good."""
        return cls(2, 4, 6, 4, 2, (4, 6, 2), 2, 2, 0.0, 8, (4,), (12, 9), 16, 4, (2, 4, 2, 2), (1, 2, 2))


@dataclass(frozen=True, eq=False)
class Data:
    """A classification problem.

    Args:
        X: Training inputs ``n x d``.
        Y: Training classes ``n x 1``.
        test_X: Test inputs ``t x d``.
        test_Y: Test classes ``t``, integers.
        truth: True probabilities of the classes at the test inputs, where the data were made up.
    """

    X: Tensor
    Y: Tensor
    test_X: Tensor
    test_Y: Tensor
    truth: Tensor | None = None


def dealt(rows: int) -> Tensor:
    """The fold that every row is tested in: all folds of one size, the same for every run."""
    return rnd.uniform((rows,), generator=rnd.generator_from(0)).argsort() % FOLDS


def banana(folder: Path, fold: int) -> Data:
    """One of five folds, z-scored by its training rows."""
    X = torch.from_numpy(np.loadtxt(folder / "banana_X_train", delimiter=","))
    Y = torch.from_numpy(np.loadtxt(folder / "banana_Y_train"))
    test = dealt(len(X)) == fold
    X = (X - X[~test].mean(0)) / X[~test].std(0)
    return Data(X[~test], Y[~test, None], X[test], Y[test].long())


def rings(rows: tuple[int, int], seed: int) -> Data:
    """Two classes on rings around each other, and their true probabilities.

    The angle is uniform and the radius N(1, .35^2) or N(2, .35^2); a negative one is on the other side.
    """
    generator = rnd.generator_from(seed)
    total = sum(rows)
    classes = rnd.integers(2, (total,), generator=generator)
    z, u = (draw((total,), generator=generator, dtype=torch.double) for draw in (rnd.normal, rnd.uniform))
    radius, angle = torch.tensor(RADII).double()[classes] + SPREAD * z, 2 * math.pi * u
    X = radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    given, test_X = X.split(list(rows))
    Z = (X - given.mean(0)) / given.std(0)
    Y, test_Y = classes.split(list(rows))
    return Data(Z[: rows[0]], Y[:, None].double(), Z[rows[0] :], test_Y, ring_probabilities(test_X))


def ring_probabilities(X: Tensor) -> Tensor:
    """The true probabilities of both rings at points ``t x 2``, in their own unit."""
    r = X.norm(dim=-1, keepdim=True)
    centres = torch.tensor(RADII).to(X)
    log_density = [-0.5 * ((r * sign - centres) / SPREAD).square() for sign in (1, -1)]
    return torch.stack(log_density).logsumexp(0).softmax(-1)


def idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, gzipped: its shape is in the header, big-endian."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of unsigned bytes: it begins with {raw[:3]!r}")
    count = raw[3]
    shape = np.frombuffer(raw, ">i4", count, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * count).reshape(shape)


def mnist(folder: Path, images: int) -> Data:
    """The first images to train on and the last fifth of the file to test on, by the mean and spread of its pixels."""
    pixels = torch.from_numpy(idx(folder / "t10k-images-idx3-ubyte.gz").copy()).flatten(1).float()
    classes = torch.from_numpy(idx(folder / "t10k-labels-idx1-ubyte.gz").copy()).long()
    held = len(pixels) // 5
    images = min(images, len(pixels) - held)
    X = (pixels - pixels[:images].mean()) / pixels[:images].std()
    return Data(X[:images], classes[:images, None].float(), X[-held:], classes[-held:])


class LeNet(nn.Module):
    """LeCun, Bottou, Bengio and Haffner's (1998) of tanh units and mean pooling, with full connections, for 28 x 28."""

    def __init__(self) -> None:
        super().__init__()
        self.convolved = nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)
        )
        self.connected = nn.Sequential(nn.Linear(256, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10))

    def forward(self, X: Tensor) -> Tensor:
        """Logits ``n x 10`` of flat images ``n x 784``."""
        return self.connected(self.convolved(X.unflatten(-1, (1, 28, 28))).flatten(1))


@lru_cache(maxsize=4)
def load(folder: Path | None, task: str, fold: int, settings: Settings) -> Data:
    """The data of a task."""
    if task == "rings":
        return rings(settings.ring_rows, fold)
    if folder is None:
        raise ValueError(f"{task} needs a folder with data")
    return banana(folder / task, fold) if task == "banana" else mnist(folder / task, settings.images)


def likelihood_of(task: str, model: str) -> Any:
    """The law of the classes."""
    return likelihoods.Bernoulli() if model == "bernoulli" else likelihoods.Categorical(10 if task == "mnist" else 2)


def target(prior: str, channels: int) -> probnn.GaussianProcess:
    """What functions of two inputs should look like, one a class or one for both.

    By default the hierarchical process of Tran, Rossi, Milios and Filippone (2022) for the banana: length scales with
    median sqrt(2 d), variances with median 8, the variances of their logarithms 1 and 0.3.
    """
    from gpytorch.kernels import RBFKernel, ScaleKernel

    kernel = ScaleKernel(RBFKernel(ard_num_dims=2)).double()
    if prior in TARGETS:
        kernel.outputscale, kernel.base_kernel.lengthscale = TARGETS[prior]
        return probnn.GaussianProcess(kernel, input_dim=2, output_dim=channels)
    hyperprior = {
        "base_kernel.lengthscale": priors.LogNormal(0.5 * math.log(2 * 2), 1.0),
        "outputscale": priors.LogNormal(math.log(8), math.sqrt(0.3)),
    }
    return probnn.GaussianProcess(kernel, input_dim=2, output_dim=channels, hyperprior=hyperprior)


def image_target(X: Tensor) -> probnn.GaussianProcess:
    """RBF on pixels, one function a class: variance 8, the median distance of 500 images for a length scale."""
    from gpytorch.kernels import RBFKernel, ScaleKernel

    kernel = ScaleKernel(RBFKernel())
    kernel.outputscale, kernel.base_kernel.lengthscale = 8.0, torch.pdist(X[:500]).median().item()
    return probnn.GaussianProcess(kernel, input_dim=X.shape[-1], output_dim=10)


@lru_cache(maxsize=2)
def prior_of(
    folder: Path | None, task: str, model: str, prior: str, fold: int, settings: Settings
) -> tuple[probnn.BayesianNetwork, float]:
    """The prior of a fit and the CPU seconds that matching took; a second sampler finds it again."""
    X = load(folder, task, fold, settings).X
    weights = priors.InverseGammaWeights() if prior == HIERARCHICAL else priors.NormalWeights(1.0, 1.0)
    channels = 1 if model == "bernoulli" else 2
    network: Any = probnn.MLP(input_dim=2, hidden=settings.hidden, output_dim=channels, activation="tanh")
    if task == "mnist":
        network = probnn.ModuleNetwork(LeNet(), input_dim=784, output_dim=10)
    start = probnn.BayesianNetwork(network, weights, dtype=X.dtype)
    if prior == FIXED:
        return start, 0.0
    options: dict[str, Any] = {"seed": fold, "shrinkage": settings.shrinkage, "num_steps": settings.auto_steps}
    if task == "mnist":
        options["num_steps"], options["num_draws"], points = settings.image_match
        # Points of the box around images are no images.
        measurement = priors.TrainingInputs(X, size=points, fraction=1.0)
        match = probnn.match_prior(start, image_target(X), measurement, **options)
        return match.prior, match.seconds
    if prior == HIERARCHICAL:
        options.update(objective="energy", num_steps=settings.energy_steps)
    measurement = priors.TrainingInputs(X, size=settings.measured)
    match = probnn.match_prior(start, target(prior, channels), measurement, **options)
    return match.prior, match.seconds


def sampler(task: str, method: str, settings: Settings) -> Any:
    """The sampler that a name means: hmc, sghmc, or either with a temperature such as ``sghmc T=0.1``."""
    name, _, temperature = method.partition(" T=")
    heat = float(temperature or 1.0)
    if name == "hmc":
        return probnn.HMC(
            num_chains=settings.num_chains,
            num_warmup=settings.num_warmup,
            num_samples=settings.num_samples,
            max_leapfrog=settings.max_leapfrog,
            start_steps=settings.start_steps,
            temperature=heat,
        )
    warmup, samples, every = settings.sghmc
    found = probnn.SGHMC(
        num_chains=settings.num_chains, num_warmup=warmup, num_samples=samples, keep_every=every, temperature=heat
    )
    if task != "mnist":
        return found
    warmup, samples, every, start = settings.image_sghmc
    return replace(
        found,
        num_warmup=warmup,
        num_samples=samples,
        keep_every=every,
        start_steps=start,
        batch_size=settings.batch,
    )


def score(p: Tensor, Y: Tensor) -> dict[str, float]:
    r"""Scores of forecasts: probabilities ``t x K`` of classes Y ``t``.

    ``accuracy`` of the likeliest class; ``nll``: :math:`-\log p_y`, and its standard error over test rows; ``brier``:
    :math:`\sum_k (p_k - 1[y = k])^2` (Brier 1950), of two classes twice the squared error of one; ``ece`` and
    ``ece_mass``: :func:`probnn.diagnostics.calibration_error` of 15 bins of equal width, and of equal mass.
    """
    nll = -p.gather(-1, Y[:, None])[:, 0].log()
    hits = torch.nn.functional.one_hot(Y, p.shape[-1])
    return {
        "accuracy": (p.argmax(-1) == Y).double().mean().item(),
        "nll": nll.mean().item(),
        "nll_error": (nll.std() / math.sqrt(len(Y))).item(),
        "brier": (p - hits).square().sum(-1).mean().item(),
        "ece": diagnostics.calibration_error(p, Y).item(),
        "ece_mass": diagnostics.calibration_error(p, Y, binning="mass").item(),
    }


def draws(posterior: Any, X: Tensor) -> Tensor:
    """Probabilities of the classes under every draw, ``S x t x K``, in double precision."""
    p = posterior.predict(X).values.double()
    return torch.cat([1 - p, p], -1) if p.shape[-1] == 1 else p


def run(
    folder: Path | None,
    task: str,
    model: str,
    prior: str,
    method: str,
    fold: int,
    settings: Settings,
    plane: Path | None = None,
) -> dict[str, float]:
    """Fit and score; CPU seconds are those of fit and scores, and apart those of matching.

    R-hat is of the probabilities of the test outcomes. What the posterior says of the plane is saved in `plane`.
    """
    torch.set_num_threads(1)
    data = load(folder, task, fold, settings)
    if data.truth is not None and prior == "truth":
        return score(data.truth, data.test_Y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # R-hat and convergence are columns of the table
        process, matching = prior_of(folder, task, model, prior, fold, settings)
        started = time.process_time()
        fit = sampler(task, method, settings)
        posterior = fit.fit(process, likelihood_of(task, model), data.X, data.Y, seed=fold)
        p = draws(posterior, data.test_X)
        found = score(p.mean(0), data.test_Y)
        seen = p[:, torch.arange(len(data.test_Y)), data.test_Y].unflatten(0, posterior.theta.shape[:2])
        rhat = diagnostics.rhat(seen)
    if plane is not None:
        save_plane(plane, posterior, data)
    return {
        **found,
        "cpu_s": time.process_time() - started,
        "match_s": matching,
        "rhat": torch.nan_to_num(rhat, nan=math.inf).max().item(),
        "rhat_median": rhat.nanmedian().item(),
        "converged": float(posterior.info.converged is True),
    }


def save_plane(path: Path, posterior: Any, data: Data, size: int = 60) -> None:
    """Mean and standard deviation, over the posterior, of the probability of class 1 on a grid, with the data."""
    axis = torch.linspace(-3.5, 3.5, size).to(data.X)
    grid = torch.cartesian_prod(axis, axis)
    p = draws(posterior, grid)[..., 1].unflatten(-1, (size, size)).mT  # rows are the second input
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, axis=axis, mean=p.mean(0), std=p.std(0), X=data.X, Y=data.Y[:, 0])
