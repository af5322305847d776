"""Simulation functions of the tests; importable, so that worker processes find them."""

from __future__ import annotations

import collections
import itertools
import os
import random
import signal
import time
import warnings

import numpy as np
import torch

TOLERANCE = 1e-6


def mean(cell, seed):
    x = np.random.default_rng(seed).normal(size=cell["n"])
    return {"mean": x.mean(), "variance": x.var(ddof=1), "positive": bool(x.mean() > 0)}


def slow_mean(cell, seed):
    time.sleep(0.002)
    return mean(cell, seed)


def means(cell, seeds):
    """`mean`, of many replicates in one call."""
    x = np.stack([np.random.default_rng(seed).normal(size=cell["n"]) for seed in seeds])
    return {"mean": x.mean(1), "variance": x.var(1, ddof=1), "positive": x.mean(1) > 0}


def products(cell, seeds):
    """Results whose last bits depend on the other replicates of a block."""
    x = torch.stack([torch.rand(cell["n"], generator=torch.Generator().manual_seed(s)) for s in seeds])
    weights = torch.linspace(-1, 1, cell["n"] ** 2).reshape(cell["n"], -1)
    return {"product": (x @ weights).square().sum(-1).double()}


def global_streams(cell, seed):
    """Draws from the global streams and forgets the seed."""
    return {"a": random.random(), "b": np.random.rand(), "c": float(torch.rand(()))}  # noqa: NPY002


def threads(cell, seed):
    return {"torch": torch.get_num_threads(), "omp": int(os.environ.get("OMP_NUM_THREADS", 0))}


def process(cell, seed):
    """Whether it runs in another process than the tests, whose number workers inherit in a variable."""
    return {"other": os.getpid() != int(os.environ["PROBNN_TEST_PROCESS"])}


def troubled(cell, seed):
    """What goes wrong is a function of the seed, so that a test knows which rows."""
    kind = trouble(cell, seed)
    if kind == "raise":
        raise ValueError(f"seed {seed} is unlucky")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "sleep":
        time.sleep(600)
    if kind == "hang":
        collections.deque(itertools.repeat(0), maxlen=0)  # compiled code that never gives the interpreter back
    if kind == "warn":
        warnings.warn("not so well", UserWarning, stacklevel=1)
    return {"x": float(seed % 11)}


def trouble(cell, seed):
    return cell["trouble"] if seed % 5 == 0 else "none"


def other_keys(cell, seed):
    return {"x": 1.0} if seed % 2 else {"y": 1.0}


def not_numbers(cell, seed):
    return {"x": {"text": "1.0", "none": None, "list": [1.0, 2.0], "nothing": 1.0}[cell["what"]]}


def always_raises(cell, seed):
    return {"x": [][1]}


def tensors(cell, seed):
    return {"tensor": torch.tensor([2.5]), "numpy": np.float32(0.5), "nan": float("nan"), "inf": np.inf, "whole": 7}
