"""The metadata says the same everywhere, the wheel holds the library and nothing else, and no file is long."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = {"test", "lint", "docs", "demo", "dask", "ray", "optuna", "bench"}
REQUIRED = {
    "torch",
    "gpytorch",
    "botorch",
    "pyro-ppl",
    "arviz",
    "numpy",
    "scipy",
    "safetensors",
    "tqdm",
    "matplotlib",
    "joblib",
    "threadpoolctl",
}
MAX_LINES = 400  # of a Python file


def name_of(requirement: str) -> str:
    """The normalised name of the package in a requirement such as `dask[distributed]>=2026`."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement.strip())[0]).lower()


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def version() -> str:
    """`__version__` as it stands in the source: packaging must not need torch to find it."""
    tree = ast.parse((ROOT / "probnn" / "_version.py").read_text(encoding="utf-8"))
    (value,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__version__")
    return ast.literal_eval(value)


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs)
    assert len({name_of(name) for name, _ in pairs}) == len(pairs)
    return {name_of(name): version for name, version in pairs}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from, so that no build folder is left in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "_build")
    shutil.copytree(ROOT, copy, dirs_exist_ok=True, ignore=left_out)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", out, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(path).decode())


def test_dependencies_are_the_agreed_ones(setup_cfg: configparser.ConfigParser) -> None:
    required = setup_cfg["options"]["install_requires"].split("\n")
    assert {name_of(line) for line in required if line} == REQUIRED
    assert set(setup_cfg["options.extras_require"]) == EXTRAS


def test_makefile_installs_every_extra_but_the_engines(setup_cfg: configparser.ConfigParser) -> None:
    (installed,) = re.findall(r"^EXTRAS\s*:=\s*(\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(installed.split(",")) == set(setup_cfg["options.extras_require"]) - {"dask", "ray", "optuna"}


def test_makefile_and_constraints_name_the_same_torch(pins: dict[str, str]) -> None:
    assert re.findall(r"torch==(\S+)", (ROOT / "Makefile").read_text(encoding="utf-8")) == [pins["torch"]]


def test_constraints_pin_every_direct_dependency_except_ray(
    setup_cfg: configparser.ConfigParser, pins: dict[str, str]
) -> None:
    lines = setup_cfg["options"]["install_requires"].split("\n")
    for extra in EXTRAS - {"ray"}:
        lines += setup_cfg["options.extras_require"][extra].split("\n")
    assert {name_of(line) for line in lines if line} <= pins.keys()


def test_pyproject_leaves_the_metadata_to_setup_cfg() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "project" not in pyproject
    assert pyproject["build-system"]["build-backend"] == "setuptools.build_meta"


def test_one_version_everywhere(version: str, metadata: Message) -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert metadata["Version"] == version
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [version]
    assert re.findall(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)[0] == version  # the newest entry


def test_license_is_apache_everywhere(metadata: Message, wheel: Path) -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability." in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "license: Apache-2.0" in (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
        assert archive.read(path).decode() == text


def test_wheel_holds_the_library_and_nothing_else(wheel: Path, version: str) -> None:
    folders = {"probnn", f"probnn-{version}.dist-info"}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(f"probnn-{version}.dist-info/entry_points.txt").decode()
    assert {name.split("/")[0] for name in names} == folders
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "probnn").rglob("*.py")}
    assert {name for name in names if name.startswith("probnn/")} == sources | {"probnn/py.typed"}
    assert "probnn = probnn.cli:main" in entry_points.splitlines()


def test_sdist_holds_what_the_tests_read(source: Path, tmp_path: Path, version: str) -> None:
    """The tests come with the pages, scripts and settings they look at; nothing comes that a tool wrote."""
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as file:
        names = {name.removeprefix(f"probnn-{version}/") for name in file.getnames()}
    written = re.compile(r"docs/(api/generated|jupyter_execute|tutorials/\d.*\.py$)")
    for folder in ("tests", "docs", "tutorials", "benchmarks", "probnn"):
        files = {path.relative_to(source).as_posix() for path in (source / folder).rglob("*") if path.is_file()}
        made = {name for name in files if written.match(name) or name.endswith(".pyc")}
        assert files - made <= names and not made & names
    assert {"Makefile", "pyproject.toml", "setup.cfg", "README.md", "LICENSE", "constraints.txt"} <= names


def test_metadata_speaks_of_python_and_extras(metadata: Message) -> None:
    assert metadata["Name"] == "probnn"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert (ROOT / "README.md").read_text(encoding="utf-8").strip() in metadata.get_payload()


def test_version_is_read_without_importing_the_library(tmp_path: Path) -> None:
    """setuptools finds `attr:` in the syntax tree; an import would need torch in the build environment."""
    (tmp_path / "probnn").mkdir()
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    shutil.copy(ROOT / "probnn" / "_version.py", tmp_path / "probnn")
    (tmp_path / "probnn" / "__init__.py").write_text("raise ImportError('the build imported the library')\n")
    command = [sys.executable, "-c", "from setuptools import setup; setup()", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+\.\d+\.\d+", done.stdout.splitlines()[-1])


def test_no_file_is_longer_than_can_be_read_at_once() -> None:
    """A longer one is split by concern."""
    folders = ("probnn", "tests", "benchmarks", "tutorials")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert len(lines) > 100
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}
