"""Everything saveable comes back bit for bit, in another interpreter too; broken files are refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpytorch
import numpy
import pytest
import torch

import probnn
from probnn import likelihoods
from probnn.errors import SerializationError
from probnn.process import StochasticProcess
from probnn.testing import check_saving
from tests.cases import LIKELIHOODS, METHODS, PROCESSES, WEIGHT_PRIORS, data, gaussian_process, module, network

# Chains of a few transitions are not expected to be good ones.
pytestmark = [
    pytest.mark.filterwarnings("ignore::probnn.errors.DivergenceWarning"),
    pytest.mark.filterwarnings("ignore::probnn.errors.ConvergenceWarning"),
]


@pytest.mark.parametrize("name", PROCESSES)
def test_processes(name: str) -> None:
    process = PROCESSES[name][0]()
    check_saving(process, network=module() if name == "module network" else None)


@functools.cache
def posterior(name: str) -> StochasticProcess:
    X, Y = data()
    prior = gaussian_process() if name == "exact" else network(hidden=(4,))
    return METHODS[name].fit(prior, likelihoods.Gaussian(), X, Y)


@pytest.mark.parametrize("name", METHODS)
def test_posteriors(name: str) -> None:
    check_saving(posterior(name))


@pytest.mark.parametrize("kind", ["likelihoods", "weight priors", "methods"])
def test_parts(kind: str, tmp_path: Path) -> None:
    parts = {"likelihoods": LIKELIHOODS, "weight priors": WEIGHT_PRIORS, "methods": METHODS}[kind]
    for name, part in parts.items():
        probnn.save(part, tmp_path / name)
        loaded = probnn.load(tmp_path / name)
        assert type(loaded) is type(part)
        for field in dataclasses.fields(part):
            a, b = getattr(part, field.name), getattr(loaded, field.name)
            assert torch.equal(a, b) if torch.is_tensor(a) else a == b


# Everything in a folder, loaded and asked for its predictions and draws.
ELSEWHERE = """
import os, sys, torch
torch.set_num_threads(1)
import probnn
from tests.cases import data, module
def answers(process):
    X = data()[0]
    found = [process.predict(X).mean, process.predict(X).variance]
    if process.joint is not None:
        found.append(process.sample(X, (3,), generator=torch.Generator().manual_seed(0)))
    return found
if __name__ == "__main__":
    folder, out = sys.argv[1:]
    torch.save({name: answers(probnn.load(os.path.join(folder, name), network=module() if "module" in name else None))
                for name in os.listdir(folder)}, out)
"""


def test_a_new_process_predicts_the_same(tmp_path: Path) -> None:
    """Every process and every method's posterior, in another interpreter, bit for bit."""
    scope: dict[str, Any] = {"__name__": "here"}
    exec(ELSEWHERE, scope)
    folder, out = tmp_path / "saved", tmp_path / "answers"
    folder.mkdir()
    saved = {f"process, {name}": make() for name, (make, _) in PROCESSES.items()}
    saved |= {f"posterior, {name}": posterior(name) for name in METHODS}
    for name, process in saved.items():
        process.save(folder / name)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(folder), str(out)], check=True, env=environment)
    there = torch.load(out)
    assert there.keys() == saved.keys()
    for name, process in saved.items():
        here = scope["answers"](process)
        assert len(here) == len(there[name]) and all(map(torch.equal, here, there[name])), name


def test_files_are_plain_safetensors_without_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import safe_open

    path = tmp_path / "draws.safetensors"
    PROCESSES["draws"][0]().save(path)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    assert probnn.load(path).num_draws == 128
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["probnn"])
        assert set(file.metadata()) == {"probnn"} and "root.theta" in file.keys()
    assert header["format"] == 1 and header["class"] == "probnn.process.EmpiricalProcess"


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b'{"a": 1}', (8).to_bytes(8, "little") + b"{}      "])
def test_garbage_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    foreign = content.endswith(b"{}      ")  # a whole file without tensors, of nobody
    with pytest.raises(SerializationError, match="not one that probnn wrote" if foreign else "not a whole probnn file"):
        probnn.load(path)


def test_files_of_others_are_named_as_such(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "file", metadata={"format": "pt"})
    with pytest.raises(SerializationError, match="safetensors file, but not one that probnn wrote"):
        probnn.load(tmp_path / "file")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    process = network(hidden=())
    with pytest.raises(SerializationError, match=f"cannot write {tmp_path} .it is a folder"):
        process.save(tmp_path)
    missing = tmp_path / "nowhere" / "a.safetensors"
    with pytest.raises(
        SerializationError, match=f"cannot write {missing} .there is no folder {missing.parent}"
    ) as caught:
        process.save(missing)
    assert ".tmp" not in str(caught.value) and not os.listdir(tmp_path)


def test_numbers_of_numpy_are_saved_as_pythons(tmp_path: Path) -> None:
    method = probnn.HMC(num_chains=numpy.int64(4), target_accept=numpy.float32(0.5))
    prior = probnn.priors.NormalWeights(weight_scale=numpy.float32(0.5), bias_scale=(numpy.float64(0.25), 1))
    for part in (method, prior):
        probnn.save(part, tmp_path / "file")
        assert probnn.load(tmp_path / "file") == part


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    network(hidden=()).draws(2).save(path)
    content = path.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 40)):
        path.write_bytes(content[:length])
        with pytest.raises(SerializationError):
            probnn.load(path)


def test_unknown_classes_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name in ("os.system", "probnn.io.os", "probnn.errors.ShapeError", "elsewhere.Thing"):
        header = {"format": 1, "class": name, "config": {"dict": {}}}
        save_file({}, tmp_path / "file", metadata={"probnn": json.dumps(header)})
        with pytest.raises(SerializationError, match="unknown class"):
            probnn.load(tmp_path / "file")


def change(path: Path, edit: Any) -> None:
    """Rewrite a file with its header edited; tensors whose names `edit` returns are left out."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["probnn"])
    without = edit(header) or ()
    tensors = {name: x for name, x in load_file(path).items() if name not in without}
    save_file(tensors, path, metadata={"probnn": json.dumps(header)})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: h["config"].update(dtype={"dtype": "save"}), "no dtype 'save'"),
        (lambda h: h["config"].update(dtype={"dtype": "nn"}), "no dtype 'nn'"),
        (lambda h: h["config"].update(extra=1), r"\['extra'\] are unknown or missing"),
        (lambda h: h["config"].pop("theta") and None, r"\['theta'\] are unknown or missing"),
        (lambda h: h.pop("config") and None, "no entry 'config'"),
        (lambda h: h.update(config=3), "'config' must be a dictionary, not 3"),
        (lambda h: ["root.theta"], "no tensor 'root.theta'"),
    ],
)
def test_files_that_somebody_changed_are_refused(edit: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    network(hidden=()).draws(2).save(path)

    def inside(header: dict[str, Any]) -> Any:
        fields = header["config"]["dict"]
        target = {**header, "config": fields}
        without = edit(target)
        if "config" not in target:
            del header["config"]
        elif target["config"] is not fields:
            header["config"] = target["config"]
        return without

    change(path, inside)
    with pytest.raises(SerializationError, match=f"{path} cannot be read back .*{message}"):
        probnn.load(path)


@pytest.mark.parametrize(
    ("part", "name"), [("priors", "torch"), ("priors", "Prior"), ("constraints", "torch"), ("constraints", "Module")]
)
def test_kernels_are_made_of_known_parts(part: str, name: str, tmp_path: Path) -> None:
    """The file chooses from a list; it cannot name anything else that gpytorch's modules hold."""
    path = tmp_path / "kernel.safetensors"
    kernel = gpytorch.kernels.RBFKernel(lengthscale_prior=gpytorch.priors.GammaPrior(3.0, 6.0)).double()
    probnn.GaussianProcess(kernel, input_dim=1).save(path)

    def edit(header: dict[str, Any]) -> None:
        def find(x: Any) -> Any:
            if isinstance(x, dict):
                return x.get(part) or next(filter(None, map(find, x.values())), None)
            return next(filter(None, map(find, x)), None) if isinstance(x, list) else None

        find(header)["dict"]["lengthscale" if part == "priors" else "raw_lengthscale"]["dict"]["class"] = name

    change(path, edit)
    with pytest.raises(SerializationError, match=f"cannot be read back .*'{name}'"):
        probnn.load(path)


def test_errors_of_the_library_are_not_blamed_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network(hidden=()).save(tmp_path / "file")

    def broken(self: object) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr(probnn.BayesianNetwork, "__post_init__", broken)
    with pytest.raises(AttributeError, match="a bug"):
        probnn.load(tmp_path / "file")


@pytest.mark.parametrize(("number", "advice"), [(99, "; upgrade probnn$"), (0, "the version that wrote it")])
def test_files_of_other_formats_say_what_to_do(number: int, advice: str, tmp_path: Path) -> None:
    network(hidden=()).save(tmp_path / "file")
    change(tmp_path / "file", lambda header: header.update(format=number))
    with pytest.raises(SerializationError, match=f"has format {number} .*reads format 1.*{advice}"):
        probnn.load(tmp_path / "file")


def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.safetensors"
    network().save(path)
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(SerializationError, match=f"cannot write {path} .disk full"):
        PROCESSES["draws"][0]().save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_what_cannot_be_saved_says_so_and_writes_nothing(tmp_path: Path) -> None:
    class Odd(gpytorch.kernels.RBFKernel):
        pass

    with pytest.raises(SerializationError):
        probnn.GaussianProcess(Odd(), input_dim=1).save(tmp_path / "file")
    with pytest.raises(SerializationError):
        probnn.save(3, tmp_path / "file")
    assert not os.listdir(tmp_path)


def test_module_network_needs_its_module_back(tmp_path: Path) -> None:
    process = PROCESSES["module network"][0]()
    process.save(tmp_path / "file")
    with pytest.raises(SerializationError, match="network="):
        probnn.load(tmp_path / "file")
    with pytest.raises(SerializationError, match="does not fit"):
        probnn.load(tmp_path / "file", network=torch.nn.Linear(2, 1))


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match="no_such_file"):
        probnn.load("no_such_file.safetensors")
