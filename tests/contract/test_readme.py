"""What the README shows runs as it stands there, with fewer chains and draws."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import probnn

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)[1]


def quick(surrogate: Any) -> Any:
    """The recipe with a short run of its method."""
    method = replace(surrogate.build.method, num_chains=4, num_warmup=10, num_samples=5, max_leapfrog=8)
    return replace(surrogate, build=replace(surrogate.build, method=method))


# Runs this short do not converge, and say so.
@pytest.mark.filterwarnings("ignore::probnn.errors.ConvergenceWarning", "ignore::probnn.errors.DivergenceWarning")
def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = "num_chains=16, num_warmup=200, num_samples=100"
    assert full in EXAMPLE
    original = probnn.get_surrogate
    monkeypatch.setattr(probnn, "get_surrogate", lambda name: quick(original(name)))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(EXAMPLE.replace(full, "num_chains=4, num_warmup=10, num_samples=5, max_leapfrog=8"), names)

    X_new, post = names["X_new"], names["post"]
    assert isinstance(post, probnn.EmpiricalProcess) and post.theta.shape[:2] == (4, 5)
    assert names["f"](X_new).shape == (8, 5, 1)
    assert names["model"].posterior(X_new).mean.shape == (5, 1)
    assert torch.equal(probnn.load(str(tmp_path / "post.safetensors")).predict(X_new).mean, post.predict(X_new).mean)
    printed = capsys.readouterr()
    assert printed.out == "" and "HMC" in printed.err  # the progress bar, and nothing else


def test_the_optimisation_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    (block,) = (b for b in blocks if "bo.run" in b)
    assert "num_evaluations=30, progress=True" in block
    names: dict[str, Any] = {}
    exec(block.replace("num_evaluations=30, progress=True", "num_evaluations=3"), names)
    assert len(names["bo"].trials) == 3 and names["train_and_score"](0.01, 4) == pytest.approx(0.9)


def test_the_package_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "probnn", "info"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"probnn       {probnn.__version__}" in done.stdout and "bnn-hmc" in done.stdout and not done.stderr
    bad = subprocess.run([sys.executable, "-m", "probnn", "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert bad.returncode == 2 and "probnn" in bad.stderr and "nothing" in bad.stderr
    assert "probnn info" in TEXT and "python -m probnn" in TEXT


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", TEXT, flags=re.MULTILINE))
def test_make_knows_the_commands(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_first_screen() -> None:
    """Three sentences, a picture that is there, two commands, the example."""
    before, _, after = TEXT.partition("![")
    sentences = re.split(r"(?<=[.])\s+", before.split("\n", 1)[1].strip())
    assert len(sentences) == 3
    picture = re.search(r"\]\((.*?)\)", after)
    assert picture and (ROOT / picture[1]).is_file()
    assert len(re.findall(r"^make \w+", after, flags=re.MULTILINE)) == 2
    assert after.index("```bash") < after.index("```python")
