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
# # From a spreadsheet to the next experiment
#
# You have a table of experiments, and want to know what to do next. No loop, no program: a file goes in, a few lines
# come out. This tutorial does that with a table as they are: saved by a European spreadsheet, with a run that failed,
# one still in the oven, and one from before the rules changed. Then it does the same from Python.
#
# The commands stand here as they are typed; `shell` runs them without leaving the page.

# %%
import contextlib
import csv
import json
import math
import os
import shlex
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from probnn.cli import main
from probnn.optimization import BayesianOptimization, Real, Space
from probnn.plots import plot_pareto, plot_space

SMOKE = "PROBNN_SMOKE" in os.environ  # the quickest model, to test that the tutorial runs
MODEL = "gp" if SMOKE else "bnn-hmc"
plt.rcParams |= {"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium"}
BLUE, RED, GREY, GOLD, GREEN = "#1f6f8b", "#d1495b", "#8d8d8d", "#c98a1b", "#4c8c6a"

before = os.getcwd()
folder = tempfile.TemporaryDirectory()
os.chdir(folder.name)  # an empty folder, which is gone at the end


def shell(line, code=0):
    """Run a command as a terminal would, both its streams on this page."""
    words = shlex.split(line)
    assert words[0] == "probnn"
    with contextlib.redirect_stderr(sys.stdout):
        assert main(words[1:]) == code


# %% [markdown]
# ## The table
#
# One row an experiment, a header on top. Semicolons and decimal commas are fine, and so are tabs, byte-order marks
# and Windows' line ends. A word says what a number cannot: **failed** was tried and did not work. An **empty cell**
# is under way. The last row is old: nobody may heat above 120 °C any more.

# %%
TABLE = """\
run;temperature;time;catalyst;solvent;yield
A1;40;30;1,0;THF;25,3
A2;60;60;2,0;DMF;44,9
A3;80;45;1,5;THF;61,7
A4;100;90;2,5;toluene;52,4
A5;70;120;1,0;toluene;38,8
A6;110;60;3,0;DMF;failed
A7;50;90;2,0;toluene;33,6
A8;90;30;2,5;THF;64,2
A9;120;105;3,0;THF;failed
B1;90;75;1,5;DMF;63,5
B2;60;105;2,5;THF;56,1
B3;100;45;1,0;THF;60,9
B4;80;90;1,5;toluene;
A0;140;30;1,0;toluene;37,2
"""
Path("experiments.csv").write_text(TABLE, encoding="utf-8")

# %% [markdown]
# ## What can be set
#
# `probnn init` reads the table and writes a first guess of the space, a text file with comments.

# %%
shell("probnn init experiments.csv --decimal ,")
print(Path("space.toml").read_text(encoding="utf-8"))

# %% [markdown]
# It has seen values, not your laboratory, so read it. Here two things are to be changed: the oven goes from 30 to 120
# °C today, and between two whole degrees there is nothing to set. (`run` was left out, because it names rows.)

# %%
text = Path("space.toml").read_text(encoding="utf-8")
text = text.replace("low = 40\nhigh = 140\nstep = 10", "low = 30\nhigh = 120\nstep = 5")
Path("space.toml").write_text(text, encoding="utf-8")

# %% [markdown]
# ## What next?

# %%
shell(f"probnn suggest experiments.csv --space space.toml --maximize yield --batch 3 --decimal , --surrogate {MODEL}")

# %% [markdown]
# From above:
#
# - **One row lies outside** today's space. It still teaches; it will not be suggested. `--strict` would make it an
#   error.
# - **The check.** Every measured row was predicted from the others. The rank correlation says whether the model orders
#   experiments as they came out, the intervals whether it knows how well. Where a model predicts nothing, a sentence
#   says so, and its suggestions are exploration.
# - **The suggestions** are settings that the oven and the balance have. `yield_mean` and `yield_std` tell what a
#   measurement would give, noise included; it lies between `yield_q05` and `yield_q95` with 90 %.
# - **`p_ok`** is the probability that the experiment works. Two failed rows are enough for that to be learned, and
#   where it is low nothing is suggested.
# - **`source`** is `model` here; `initial` while there are too few rows, and `random(why)` if ever a model could not
#   be used: never silently.
#
# A suggestion is a suggestion. Do something else if you know better, and write down what you did.
#
# ## Today only DMF, and into the table
#
# `--fix` holds a value for today; the model still learns from all rows. `--append` adds the suggestions below the
# others with empty cells of the result, and touches nothing else. Without it nothing is ever written into your table.

# %%
shell(
    "probnn suggest experiments.csv --space space.toml --maximize yield --batch 2 --decimal , --surrogate gp"
    " --fix solvent=DMF --append --quiet"
)
print(Path("experiments.csv").read_text(encoding="utf-8")[len(TABLE) - 30 :])

# %% [markdown]
# Two days later. The laboratory is a function here, and fills in the empty cells:


# %%
def laboratory(temperature, time, catalyst, solvent):
    """What would come out, or None where it boils over."""
    if temperature + 12 * catalyst > 140:
        return None
    solvents = {"THF": 8.0, "DMF": 4.0, "toluene": -4.0}
    hot = ((temperature - 90) / 40) ** 2
    return 58 + solvents[solvent] - 12 * hot + 4 * math.log(time / 60) + 3 * catalyst * (1 - hot)


def fill_in(path):
    """Write results into the empty cells."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    for row in rows:
        if not row["yield"]:
            numbers = [float(row[name].replace(",", ".")) for name in ("temperature", "time", "catalyst")]
            found = laboratory(*numbers, row["solvent"])
            row["yield"] = "failed" if found is None else f"{found:.1f}".replace(".", ",")
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


fill_in("experiments.csv")
shell(
    f"probnn suggest experiments.csv --space space.toml --maximize yield --batch 4 --decimal , --surrogate {MODEL}"
    " --format json -o next.json"
)
suggested = json.loads(Path("next.json").read_text(encoding="utf-8"))

# %% [markdown]
# `--format json` and `--format csv` are for other programs; `-o` writes a new file. The four suggestions, with their
# 90 % intervals, beside the best that was measured:

# %%
with open("experiments.csv", encoding="utf-8", newline="") as file:
    measured = [
        float(r["yield"].replace(",", ".")) for r in csv.DictReader(file, delimiter=";") if r["yield"][0].isdigit()
    ]
fig, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
for i, row in enumerate(suggested):
    ax.plot([row["yield_q05"], row["yield_q95"]], [i, i], color=BLUE, lw=2)
    ax.plot(row["yield_mean"], i, "o", color=BLUE)
ax.axvline(max(measured), color=GREY, ls=":", label="best so far")
labels = [
    f"{r['temperature']} °C, {r['time']} min, {r['catalyst']} %, {r['solvent']}, works: {r['p_ok']:.0%}"
    for r in suggested
]
ax.set_yticks(range(len(suggested)), labels)
ax.set(xlabel="yield", ylim=(len(suggested) - 0.5, -0.5))
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## The same in Python
#
# The command line is a thin shell. What it reads is an optimisation that can be asked, and drawn: where experiments
# failed, and where the model therefore thinks that they will.

# %%
from probnn.optimization.rows import parse_trials
from probnn.optimization.spacefile import read_space
from probnn.optimization.table import read_table

space = read_space("space.toml")
bo = BayesianOptimization(space, maximize="yield", surrogate="gp", seed=0)
bo.trials = parse_trials(read_table("experiments.csv", decimal=","), space, ["yield"])
ax = plot_space(bo, parameters=["temperature", "catalyst"])
ax.set_title("trials, and the probability that they work")
plt.show()

# %% [markdown]
# ## Ingredients that sum to one
#
# Rules are text: in the list `constraints` of the file, or in Python. They hold exactly in what is suggested, after
# rounding to steps, not nearly and not before.

# %%
mixture = Space(
    resin=Real(0.2, 0.8, step=0.05),
    filler=Real(0, 0.6, step=0.05),
    oil=Real(0, 0.3, step=0.05),
    wax=Real(0, 0.3, step=0.05),
    constraints=["resin + filler + oil + wax = 1", "at most 1 of oil, wax"],
)


def hardness(resin, filler, oil, wax):
    return 100 * filler * resin + 30 * wax - 20 * oil


blend = BayesianOptimization(mixture, maximize="hardness", surrogate="gp", seed=0)
blend.run(hardness, num_evaluations=8 if SMOKE else 14)
for trial in blend.trials[-3:]:
    amounts = ", ".join(f"{name} {amount:.2f}" for name, amount in trial.parameters.items())
    print(f"{amounts}: sum {sum(trial.parameters.values()):.2f}, hardness {trial.value:.1f}")

# %% [markdown]
# ## Two targets
#
# Strong and cheap. Name both, and a bound on a third if there is one; the answer is a front, and suggestions push it
# outwards.


# %%
def cost(resin, filler, oil, wax):
    return 4 * resin + 1.5 * filler + 3 * oil + 5 * wax


both = BayesianOptimization(mixture, maximize="hardness", minimize="cost", surrogate="gp", seed=0)
both.run(lambda **x: {"hardness": hardness(**x), "cost": cost(**x)}, num_evaluations=8 if SMOKE else 16)
both.ask(2)
ax = plot_pareto(both)
plt.show()

# %% [markdown]
# ## The machine is switched off at night
#
# With `history=` every step is written to a file before it counts, and the file is the only state. Here one campaign
# runs through, another is stopped in the middle and begun anew from its file: they make the same suggestions.


# %%
def campaign(path):
    return BayesianOptimization(mixture, maximize="hardness", surrogate="gp", seed=0, history=path)


with campaign("through.csv") as through:
    through.run(hardness, num_evaluations=9)
with campaign("stopped.csv") as stopped:
    stopped.run(hardness, num_evaluations=6)
with campaign("stopped.csv") as resumed:  # another process, another day
    resumed.run(hardness, num_evaluations=3)
assert [t.parameters for t in resumed.trials] == [t.parameters for t in through.trials]
print(*Path("stopped.csv").read_text(encoding="utf-8").splitlines()[-2:], sep="\n")

# %% [markdown]
# ## Would it have saved me experiments?
#
# `probnn backtest` replays a table that is finished: five random rows, then one at a time as the model would have
# chosen, against random search. Here a full grid of the laboratory above.

# %%
names = ["temperature", "time", "catalyst", "solvent"]
full = [
    (t, minutes, c, s)
    for t in range(40, 121, 20)
    for minutes in (30, 60, 120)
    for c in (1, 2, 3)
    for s in ("THF", "DMF", "toluene")
]
with open("finished.csv", "w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file)
    writer.writerow([*names, "yield"])
    for setting in full:
        found = laboratory(*setting)
        writer.writerow([*setting, "failed" if found is None else f"{found:.2f}"])
shell("probnn init finished.csv -o finished.toml")
shell(
    "probnn backtest finished.csv --space finished.toml --maximize yield --surrogates gp"
    f" --seeds {1 if SMOKE else 4} --quiet"
)

# %%
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.imshow(plt.imread("backtest/backtest.png"))
ax.set_axis_off()
plt.show()

# %% [markdown]
# The last paragraph it prints is meant seriously: a finished table flatters every method.
#
# Questions one at a time: [how do I ...?](../how-to/index.md) Every option: [the command line](../command-line.md).
# What may stand in the files: [files](../files.md).
#
# ## What was claimed

# %%
assert [row["source"] for row in suggested] == ["model"] * 4
for row in suggested:
    setting = {name: row[name] for name in space.parameters}
    assert space.violations(setting) == [], "every suggestion can be set"
    assert row["yield_q05"] < row["yield_mean"] < row["yield_q95"] and 0 < row["p_ok"] <= 1
for trial in blend.trials + both.trials:
    assert mixture.violations(trial.parameters) == []
    assert abs(sum(trial.parameters.values()) - 1) < 1e-12, "a mixture is one"
assert len(both.pareto) > 1
appended = Path("experiments.csv").read_text(encoding="utf-8").splitlines()[len(TABLE.splitlines()) :]
assert len(appended) == 2 and all("DMF" in line for line in appended)
if not SMOKE:
    works = [laboratory(*(row[name] for name in names)) is not None for row in suggested]
    assert sum(works) >= 3, "failures are learned"
os.chdir(before)
folder.cleanup()
