"""The documentation speaks of every public name, and only of names there are."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import probnn
from probnn.diagnostics import ess, rhat

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
API = DOCS / "api"
HOW_TO = sorted(p for p in (DOCS / "how-to").glob("*.md") if p.stem != "index")
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if not {"_build", "generated"} & set(p.parts))]
SCRIPTS = sorted((ROOT / "tutorials").glob("*.py"))


def defined(module: ModuleType) -> set[str]:
    """The functions and classes a module defines, but for private ones."""
    return {
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(thing) or inspect.isfunction(thing))
        and thing.__module__ == module.__name__
    }


def listed(page: Path) -> list[str]:
    """The names in the autosummary tables of a page."""
    tables = re.findall(r"\.\. autosummary::\n((?:   .*\n|\n)+)", page.read_text(encoding="utf-8"))
    return [name for table in tables for name in re.findall(r"^   (\w+)$", table, flags=re.MULTILINE)]


def code(page: Path) -> Iterator[str]:
    """The Python code blocks of a page."""
    yield from re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", probnn._MODULES)
def test_every_public_name_has_a_page(name: str) -> None:
    names, module = listed(API / f"{name}.md"), importlib.import_module(f"probnn.{name}")
    assert len(names) == len(set(names)), "twice"
    if hasattr(module, "__all__"):
        assert set(names) == set(module.__all__)
    else:  # some of its names are for the library itself
        at_the_top = {top for top, home in probnn._NAMES.items() if home == name}
        assert names and at_the_top <= set(names) <= defined(module)


def test_every_error_has_a_page() -> None:
    classes = {name for name in defined(probnn.errors) if inspect.isclass(getattr(probnn.errors, name))}
    assert set(listed(API / "errors.md")) == classes


def test_the_index_lists_every_module_and_every_name_at_the_top() -> None:
    text = (API / "index.md").read_text(encoding="utf-8")
    contents = re.search(r"^```\{toctree\}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert contents and set(re.findall(r"^(\w+)$", contents[1], flags=re.MULTILINE)) == set(probnn._MODULES)
    assert {name for name in probnn._NAMES if not re.search(rf"`probnn\.{name}`", text)} == set()


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=lambda page: str(page.relative_to(ROOT)))
def test_names_in_the_text_exist(page: Path) -> None:
    """Every `probnn.…` resolves as far as it consists of names of modules and classes."""
    for dotted in set(re.findall(r"(?<![\w/.-])probnn(?:\.[A-Za-z_]\w*)+", page.read_text(encoding="utf-8"))):
        thing: object = probnn
        for part in dotted.split(".")[1:]:
            if isinstance(thing, ModuleType) and part == "md":
                break
            try:
                thing = getattr(thing, part)
            except AttributeError:
                if not isinstance(thing, ModuleType):
                    fields = getattr(thing, "__dataclass_fields__", {})
                    assert part in fields, f"{dotted} in {page.name}"
                    break
                thing = importlib.import_module(f"{thing.__name__}.{part}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_is_python(page: Path) -> None:
    for block in code(page):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path = (page.parent / target).resolve()
        if path.parent == DOCS / "tutorials" and path.suffix == ".py":
            path = ROOT / "tutorials" / path.name  # the build copies them
        assert path.exists(), f"{target} in {page.name}"


def quick(method: Any) -> Any:
    """The method of inference, doing little."""
    few = {"num_chains": 4, "num_warmup": 10, "num_samples": 10, "max_leapfrog": 8, "start_steps": 20, "steps": 30}
    few |= {"keep_every": 1, "num_starts": 1, "polish_steps": 3, "rounds": 2}
    return replace(method, **{name: value for name, value in few.items() if name in method.__dataclass_fields__})


# Runs this short do not converge, and say so; nor need a search for candidates.
@pytest.mark.filterwarnings(
    "ignore::probnn.errors.ConvergenceWarning",
    "ignore::probnn.errors.DivergenceWarning",
    "ignore::probnn.errors.DegenerateWeightsWarning",
    "ignore::botorch.exceptions.BotorchWarning",
)
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_how_to_pages_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def surrogate(name: str) -> probnn.Surrogate:
        recipe = found(name)
        return replace(recipe, build=replace(recipe.build, method=quick(recipe.build.method)))

    found = probnn.get_surrogate
    for name in ("HMC", "SGHMC", "Laplace", "DeepEnsemble", "MeanFieldVI"):
        method = getattr(probnn, name)
        monkeypatch.setattr(probnn, name, lambda method=method, **settings: quick(method(**settings)))
    monkeypatch.setattr(probnn, "get_surrogate", surrogate)
    monkeypatch.setattr("probnn.optimization.loop.get_surrogate", surrogate)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in [*code(DOCS / "how-to" / "index.md"), *code(page)]:
        exec(block.replace("num_samples=500, warmup_steps=500", "num_samples=5, warmup_steps=5"), names)


def test_the_posterior_at_hand_in_the_how_to_pages_is_a_good_one() -> None:
    """As it is printed: what the page on convergence says of its numbers is true, and nothing warns."""
    names: dict[str, Any] = {}
    for block in code(DOCS / "how-to" / "index.md"):
        exec(block, names)
    post, f = names["post"], names["post"].apply(names["post"].theta, names["X_new"])
    assert rhat(f).max() < 1.02 and ess(f).min() > 300
    assert post.info.converged and post.info.warnings == ()
    assert post.info.divergences < 0.01 * post.num_draws and abs(post.info.acceptance - 0.8) < 0.1


def test_the_index_lists_every_how_to() -> None:
    text = (DOCS / "how-to" / "index.md").read_text(encoding="utf-8")
    assert {page.stem for page in HOW_TO} == set(re.findall(r"^([a-z-]+)$", text, flags=re.MULTILINE))


def test_the_benchmark_page_shows_the_results() -> None:
    """What ``python -m benchmarks.page`` would write."""
    import importlib.util

    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("benchmark_page", root / "benchmarks" / "page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page()
