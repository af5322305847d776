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
# # A replicated study on two cores, killed and resumed
#
# Student's interval for a mean is exact for normal data. For skewed data it covers less often than it says, and the
# bootstrap is said to mend that. How much, at which n? The answer is a simulation study, and this is how one goes: rows
# that survive whatever happens to the machine, failures that are counted, one odd data set looked at by itself, and
# errors for all the numbers in the end.
#
# ## The simulation is a module
#
# Workers are other processes, and so is the run of tomorrow; a simulation in a file of its own can be imported by all
# of them. `simulate(cell, seed)` makes one data set and gives a dictionary of numbers. Its cell says which law, n and
# method, and all that is random comes from the seed.

# %%
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from probnn import studies
from probnn.errors import DomainError, IncompleteStudyWarning

SMOKE = "PROBNN_SMOKE" in os.environ  # fewer cells and replicates, to test that the tutorial runs
SIZES = (10, 20) if SMOKE else (10, 20, 40, 80)
REPLICATES, MORE = (200, 220) if SMOKE else (300, 400)
plt.rcParams |= {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium"}
RED, GREY = "#d1495b", "#8d8d8d"

temporary = tempfile.TemporaryDirectory()  # runs/ in the folder of a project, usually
folder = Path(temporary.name)
SOURCE = '''
import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from probnn import studies

TRUTH = {"log-normal": np.exp(0.5), "claims": 0.2}  # the means
RESAMPLES = 2999


def sample(cell, rng):
    if cell["law"] == "log-normal":
        return rng.lognormal(size=cell["n"])
    return rng.exponential(size=cell["n"]) * (rng.random(cell["n"]) < 0.2)  # four of five have no claim


def interval(method, x, rng):
    """95 % for the mean: Student, or the bootstrap's percentiles, plain or corrected (Efron 1987)."""
    mean, spread = x.mean(), x.std(ddof=1)
    if spread == 0:
        raise ValueError(f"all {len(x)} observations are {x[0]:g}")
    levels = np.array([0.025, 0.975])
    if method == "t":
        return mean + stdtrit(len(x) - 1, levels) * spread / np.sqrt(len(x))
    means = x[rng.integers(len(x), size=(RESAMPLES, len(x)))].mean(axis=1)
    if method == "BCa":
        d = x - mean
        acceleration = (d**3).sum() / (6 * (d**2).sum() ** 1.5)
        shift = ndtri(((means < mean).mean() + (means <= mean).mean()) / 2)
        z = shift + ndtri(levels)
        levels = ndtr(shift + z / (1 - acceleration * z))
    return np.quantile(means, levels)


def simulate(cell, seed):
    rng = np.random.default_rng(seed)
    x = sample(cell, rng)
    low, high = interval(cell["method"], x, rng)
    truth = TRUTH[cell["law"]]
    return {"estimate": x.mean(), "low": low, "high": high, "covered": low <= truth <= high, "truth": truth}


def study(store, replicates, sizes):
    grid = {"law": ["log-normal", "claims"], "n": sizes, "method": ["t", "percentile", "BCa"]}
    return studies.Study(simulate, grid, replicates, seed=7, store=store, paired=["method"])
'''
(folder / "intervals.py").write_text(SOURCE)
sys.path.insert(0, os.fspath(folder))
intervals = importlib.import_module("intervals")

store = folder / "runs"
study = intervals.study(store, REPLICATES, SIZES)

# %% [markdown]
# `paired=["method"]` leaves the method out of the seeds, so that the three methods see the same data sets.
#
# ## Run, killed, run, killed
#
# The run is a process with two workers. It gets SIGKILL, which no program can answer, when a part of the rows is in the
# store; and is started again, and killed again as soon as there is one row more. Meanwhile this process looks at the
# same store; anybody may, at any time.

# %%
total = len(study.cells) * REPLICATES


def rows_there():
    return total - study.status()["missing"].sum()


def start(store, replicates, **settings):
    program = f"import intervals; intervals.study({os.fspath(store)!r}, {replicates}, {SIZES}).run(**{settings})"
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True)


found = []
for wanted in (1 if SMOKE else total // 5, 1):
    before, process = rows_there(), start(store, REPLICATES, n_jobs=2)
    while process.poll() is None and rows_there() < before + wanted:
        time.sleep(0.01)
    process.kill()
    os.killpg(process.pid, signal.SIGTERM)  # its idle workers, which nobody would end now
    process.communicate()
    found.append(rows_there())
    print(f"ended by signal {-process.returncode}: {found[-1]:,} of {total:,} rows are there")

# %% [markdown]
# What is in the folder: files of rows, each whole, because they are written under another name and renamed; a
# description for people; and notes of what was running, which the next run clears away. The first rows are one of each
# cell, to know soon whether all of them work. Then come the dearest cells, so that no worker is left with a long one in
# the end.

# %%
for path in sorted(store.rglob("*")):
    if path.is_file():
        name = str(path.relative_to(store))
        print(f"{path.stat().st_size:9,} bytes  {name if len(name) < 60 else name[:57] + '...'}")
study.status()

# %% [markdown]
# ## Resumed
#
# The same command again. It does what is missing; all that a kill costs are the rows that were not yet in a file, which
# is those of the last second. The warning says that some replicates have no result, and we come to that.

# %%
process = start(store, REPLICATES, n_jobs=2)
_, said = process.communicate()
print(said.splitlines()[0].split(": ", 1)[-1])
print(f"{rows_there():,} of {total:,} rows are there")

# %% [markdown]
# Is that the table of a run that nothing happened to? `digest` is a hash of all rows, to the last bit of the last
# number (only the times are left out). A study with another store, run at one go, and by one process instead of two
# workers, has the same.


# %%
def run(study, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteStudyWarning)  # seen above
        return study.run(**settings)


untouched = run(intervals.study(None, REPLICATES, SIZES))  # None: a folder that goes with the object
print("killed twice ", study.digest()[:32])
print("uninterrupted", untouched.digest()[:32])

# %% [markdown]
# That works because a row's seed depends on the study's seed, the cell and the replicate only, not on when, where and
# after what it was run.
#
# ## Failures are rows
#
# Most policies have no claim in a year, and ten policies may have none at all. Then there is no interval, the function
# raises, and the replicate is a row with the status `failed` and its error. Rows like that are in the table, in every
# summary's counts, and here:

# %%
failures = study.failures()
print(study.table().where(status="failed")["error"][0])
failures.take(failures["num_failed"] > 0)

# %% [markdown]
# They are not to be left out silently. Of the intervals that there are, some share covers; of all data sets that were
# drawn, a smaller one, as no interval covers nothing. Which one is meant has to be said, since failures depend on the
# data. (`run` tries failed rows again, since some failures pass, such as a lack of memory; `retry=False` leaves them.)

# %%
AXES = ["law", "n", "method"]
table = study.table()
covered = table["covered"]
among_all = studies.Table(
    {name: table[name] for name in AXES} | {"intervals": covered, "data sets": np.nan_to_num(covered, nan=0.0)}
)
measures = [studies.Coverage("intervals", name="of intervals"), studies.Coverage("data sets", name="of data sets")]
both = studies.summarise(among_all, measures, axes=AXES)
studies.pivot(both.where(law="claims", n=10))

# %% [markdown]
# ## One odd row
#
# Which estimate is the farthest from the truth? The table says where it is, and `replay` computes this row alone, in
# this process, where a debugger could be. It says whether the result is bit-equal to the one in the store.

# %%
ratio = np.where(table["status"] == "complete", table["estimate"] / table["truth"], 0.0)
odd = next(table.take([int(ratio.argmax())]).rows())
cell = {name: odd[name] for name in AXES}
replay = study.replay(cell, odd["replicate"])
print(replay)

# %% [markdown]
# The seed gives its data back as well.

# %%
x = intervals.sample(cell, np.random.default_rng(replay.seed))
print("data", np.sort(x).round(2))
figure, axes = plt.subplots(1, 2, figsize=(9, 2.7), layout="constrained", width_ratios=[1, 1.4])
same_n = table.where(law=cell["law"], n=cell["n"], method="t")["estimate"]
axes[0].hist(same_n, bins=np.linspace(0, 1.05 * odd["estimate"], 40), color=GREY, alpha=0.7)
axes[0].annotate(
    "this one", (odd["estimate"], 1), (0, 28), textcoords="offset points", ha="center", color=RED,
    arrowprops={"arrowstyle": "->", "color": RED},
)  # fmt: skip
axes[0].set(xlabel=f"estimates, {cell['law']}, n = {cell['n']}", ylabel="data sets")
axes[1].plot(x, np.zeros_like(x), "|", color="k", ms=14, mew=1.2)
for height, method in enumerate(("t", "percentile", "BCa"), start=1):
    again = study.replay(cell | {"method": method}, odd["replicate"]).values
    axes[1].plot([again["low"], again["high"]], [-height, -height], color=RED, lw=3, solid_capstyle="butt")
axes[1].axvline(odd["truth"], color=GREY, ls=":")
axes[1].annotate("truth", (odd["truth"], 0.6), (3, 0), textcoords="offset points", color=GREY, va="center")
axes[1].set_yticks([0, -1, -2, -3], ["data", "t", "percentile", "BCa"])
axes[1].set(ylim=(-3.6, 1.0), xlabel="its data, and its three intervals")
plt.show()

# %% [markdown]
# Two large claims make it: no error, and the data set stays in the study.
#
# ## Changed code is refused
#
# Say that somebody saves time with fewer bootstrap samples. Rows made in two ways must not be in one table, and a store
# knows what its rows were made with: the code of the simulation and the constants and functions of yours that it uses.

# %%
intervals.RESAMPLES = 499  # as an edit of the file would
try:
    intervals.study(store, REPLICATES, SIZES)
except DomainError as error:
    refused = str(error).replace(os.fspath(store), "runs")
    print(textwrap.fill(refused, 100))
intervals.RESAMPLES = 2999

# %% [markdown]
# ## What came out
#
# Every measure has its Monte Carlo standard error, in brackets: what another set of as many replicates would move it.

# %%
MEASURES = [
    studies.Bias("estimate", truth="truth", relative=True, name="relative bias"),
    studies.RMSE("estimate", truth="truth", name="RMSE"),
    studies.Coverage("covered", name="coverage"),
]
summary = study.summary(MEASURES)
studies.pivot(summary.where(method="t"))

# %% [markdown]
# A mean is unbiased, so why is its bias 12 % for ten claims? Because the data sets without a claim failed, and the mean
# of the others is too large by the factor $1 / (1 - 0.8^{10}) = 1.12$. The measure is right about the rows that it has,
# and the note above the table says that they are not all.
#
# How many replicates would give coverages with a standard error of 0.01?

# %%
needed = studies.replicates_needed(summary, {"coverage": 0.01})
print(textwrap.fill(needed.caption, 100))

# %% [markdown]
# ## More replicates
#
# No need to start again: a study with more replicates takes those that are there. And no need for one machine: a shard
# `(i, N)` is every Nth row, for N jobs of a queue that share a folder. Here are two such jobs, at the same time, of a
# study that has the larger number from the start. Its table is the same.

# %%
jobs = [start(folder / "shards", MORE, shard=(i, 2)) for i in (1, 2)]
larger = run(intervals.study(store, MORE, SIZES), retry=False)
for job in jobs:
    job.communicate()
in_shards = intervals.study(folder / "shards", MORE, SIZES)
print(f"{len(table):,} rows before, {len(larger.table()):,} now")
print("added    ", larger.digest()[:32])
print("in shards", in_shards.digest()[:32])

# %%
coverage = larger.summary(studies.Coverage("covered", name="coverage"))
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
for ax, law in zip(axes, ("log-normal", "claims"), strict=True):
    ax.axhline(0.95, color=GREY, ls="--", lw=1)
    studies.plot_summary(coverage.where(law=law), "n", log="x", ax=ax)
axes[0].annotate("95 %", (SIZES[0], 0.95), (0, 4), textcoords="offset points", color=GREY, fontsize="small")
axes[0].legend(frameon=False, fontsize="small", loc="lower right")
axes[1].legend().remove()
axes[1].set_ylabel("")
plt.show()

# %% [markdown]
# All three promise 95 %, and with a few tens of observations none keeps it. The bars overlap, so that the figure alone
# cannot order them.
#
# ## Paired differences
#
# But the methods saw the same data, and a difference of two on the same data set is known much better than either. As
# an array with a dimension for each axis, the table subtracts by itself. (`to_pandas`, `to_csv`, `to_parquet`,
# `to_latex` are the other ways out.)

# %%
array = larger.table().to_xarray([*AXES, "replicate"])
print(dict(array.sizes))


def mean_and_error(values):
    """Over replicates; xarray skips those that have no result."""
    return values.mean("replicate"), values.std("replicate", ddof=1) / values.count("replicate") ** 0.5


def of(method):
    return array.covered.sel({"method": method})


gain, paired_error = mean_and_error(of("BCa") - of("percentile"))
errors = [mean_and_error(of(m))[1] for m in ("BCa", "percentile")]
unpaired_error = (errors[0] ** 2 + errors[1] ** 2) ** 0.5
frame = gain.to_dataframe(name="BCa - percentile")
frame["error, paired"] = paired_error.to_dataframe(name="e").e
frame["error if unpaired"] = unpaired_error.to_dataframe(name="e").e
frame.round(4)

# %% [markdown]
# The correction does help with claims, by some percents that the figure hides in its bars. For the log-normal law it
# does less, and how much would take more replicates. The price of a coverage is the width of the intervals, by pandas:

# %%
pandas_table = larger.table().to_pandas().query("status == 'complete'")
widths = (pandas_table.high - pandas_table.low).groupby([pandas_table[name] for name in AXES]).median().unstack()
widths.round(3)

# %% [markdown]
# And the table for the paper, in Markdown here, or `to_latex`:

# %%
print(studies.pivot(coverage, "method").to_markdown())

# %% [markdown]
# What was claimed, asserted:

# %%
assert 0 < found[0] <= found[1] < total == rows_there(), "killed in the middle, and resumed to the end"
assert study.digest() == untouched.digest() and larger.digest() == in_shards.digest() != study.digest()
assert set(table["status"]) == {"complete", "failed"} and not list(store.glob("running/*"))
assert table.where(status="failed")["error"][0].startswith("ValueError: all 10 observations are 0")
assert replay.equal and replay.values["estimate"] == x.mean()
assert "RESAMPLES was 2999, is 499" in refused
assert (unpaired_error > 1.3 * paired_error).all()
bias = next(summary.where(law="claims", n=10, method="t", measure="relative bias").rows())
assert abs(bias["value"] - (1 / (1 - 0.8**10) - 1)) < 4 * bias["mcse"]
for (law, _), row in frame.iterrows():
    assert SMOKE or law != "claims" or row.iloc[0] > 1.5 * row.iloc[1]
assert (coverage["value"] + 3 * coverage["mcse"])[coverage["n"] == 10].max() < 0.95
sys.path.remove(os.fspath(folder))
temporary.cleanup()
