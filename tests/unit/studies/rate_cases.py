"""Losses about power laws, and the statistics of them that rates are fitted to, one size after the other."""

from __future__ import annotations

import numpy as np
from scipy.stats import binom, norm

from probnn.studies.table import Table

SIZES = (100, 250, 1000, 3000, 10000)


def noisy(seed: int, sizes=SIZES, replicates: int = 40, sd: float = 1.0, slope: float = -0.5) -> Table:
    """Lognormal losses about a power law."""
    n = np.repeat(sizes, replicates)
    noise = np.random.default_rng(seed).standard_normal(len(n))
    return Table(
        {"n": n, "replicate": np.tile(np.arange(replicates), len(sizes)), "loss": 2 * n**slope * np.exp(sd * noise)}
    )


def naive(table: Table, statistic: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, statistics and standard errors of their logarithms, one size after the other."""
    sizes, values, errors = np.unique(table["n"]), [], []
    for n in sizes:
        x = table["loss"][table["n"] == n]
        m = len(x)
        if statistic == "mean":
            values.append(x.mean())
            errors.append(x.std(ddof=1) / np.sqrt(m) / x.mean())
        else:
            y, c = np.sort(np.log(x)), max(round((m + 1) / 2 - m**0.5), 1)
            values.append(np.median(x))
            errors.append((y[m - c] - y[c - 1]) / (2 * norm.ppf(1 - binom.cdf(c - 1, m, 0.5))))
    return sizes, np.array(values), np.array(errors)
