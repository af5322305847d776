"""Tables: what goes in, what comes out, and every way out of the library."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from probnn.errors import DomainError, ShapeError, UnsupportedError
from probnn.studies import Table
from probnn.studies import _text as text


def study_table() -> Table:
    return Table(
        {
            "n": [100, 100, 1000],
            "method": ["ols", "wls", "ols"],
            "seed": [2**62, 2**62 + 1, 3],
            "loss": [0.125, math.nan, -math.inf],
            "ok": [True, False, True],
        },
        "losses",
    )


def test_columns_keep_kind_and_are_read_only() -> None:
    source = np.array([1.0, 2.0])
    t = Table({"a": source, "b": np.array([1, 2], dtype=np.int16), "c": torch.tensor([True, False]), "d": ("x", "yy")})
    assert [t[name].dtype.kind for name in t.names] == ["f", "i", "b", "U"]
    assert t["b"].dtype == np.int64 and t["a"].dtype == np.float64
    source[0] = 9.0
    assert t["a"][0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        t["a"][0] = 3.0
    with pytest.raises(TypeError):
        t.columns["e"] = np.zeros(2)  # type: ignore[index]
    with pytest.raises(AttributeError):
        t.caption = "other"  # type: ignore[misc]
    assert Table({"x": [1, 2.5]})["x"].tolist() == [1.0, 2.5]
    assert Table({"x": [np.float32(0.5), 1]})["x"].dtype == np.float64
    assert Table({"x": np.array([1, "a"], dtype=object)[:1]})["x"].dtype == np.int64
    assert len(Table({})) == 0 and len(Table({"x": []})) == 0 and "x" in Table({"x": []})


@pytest.mark.parametrize(
    "columns, error, says",
    [
        ({"a": [1, "x"]}, DomainError, "int, str"),
        ({"a": [True, 2]}, DomainError, "bool, int"),
        ({"a": [1.0, None]}, DomainError, "NoneType"),
        ({"a": "abc"}, DomainError, "sequence"),
        ({"a": 3.0}, DomainError, "sequence"),
        ({"a": [2**63]}, DomainError, "2\\*\\*63"),
        ({"a": np.array([2**63], dtype=np.uint64)}, DomainError, "2\\*\\*63"),
        ({"a": np.array([1j])}, DomainError, "complex"),
        ({"a": np.zeros((2, 2))}, ShapeError, r"\(2, 2\)"),
        ({"a": [1], "b": [1, 2]}, ShapeError, "one length"),
        ({1: [1]}, DomainError, "names"),
        ([1, 2], DomainError, "mapping"),
    ],
)
def test_refuses_what_is_no_column(columns: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Table(columns)  # type: ignore[arg-type]


def test_names_and_rows() -> None:
    t = study_table()
    assert t.names == ("n", "method", "seed", "loss", "ok") and len(t) == 3
    first = next(t.rows())
    assert first == {"n": 100, "method": "ols", "seed": 2**62, "loss": 0.125, "ok": True}
    assert [type(v) for v in first.values()] == [int, str, int, float, bool]
    assert Table.from_rows(list(t.rows()), "losses") == t
    with pytest.raises(DomainError, match="'loss', 'ok'"):
        t["lost"]
    with pytest.raises(TypeError):
        iter(t)  # type: ignore[call-overload]
    with pytest.raises(DomainError, match="row 1"):
        Table.from_rows([{"a": 1}, {"b": 1}])
    with pytest.raises(DomainError, match="one row"):
        Table.from_rows([])


def test_where_take_groups_agree_with_loops() -> None:
    t = study_table()
    assert t.where(n=100, method="wls")["seed"].tolist() == [2**62 + 1]
    assert t.where({"loss": math.nan})["method"].tolist() == ["wls"]
    assert t.where(ok=np.True_)["n"].tolist() == [100, 1000]
    assert len(t.where(n=5)) == 0 and t.where(n=5)["method"].dtype.kind == "U"
    assert t.where(seed=2**62)["method"].tolist() == ["ols"]  # not rounded to floats, which would find two
    assert t.take([-1, 0])["n"].tolist() == [1000, 100] and len(t.take([])) == 0
    for bad in ({"n": "100"}, {"method": 1}, {"ok": 1}, {"n": True}, {"n": [100]}, {"m": 1}):
        with pytest.raises(DomainError):
            t.where(bad)  # type: ignore[arg-type]
    for which, error in (([0.5], DomainError), ([True], ShapeError), ([3], ShapeError), ([[0]], DomainError)):
        with pytest.raises(error):
            t.take(which)
    t = Table({"a": [2.0, math.nan, 2.0, math.nan], "b": ["x", "x", "y", "x"], "i": range(4)})
    found = [(cell, part["i"].tolist()) for cell, part in t.groups(["a", "b"])]
    assert [rows for _, rows in found] == [[0], [1, 3], [2]]
    assert found[0][0] == {"a": 2.0, "b": "x"} and math.isnan(found[1][0]["a"])
    assert [len(part) for _, part in t.groups([])] == [4]


def test_equality_copies_and_immutability() -> None:
    t = study_table()
    same = Table({name: column.tolist() for name, column in t.columns.items()}, "losses")
    assert t == same and copy.deepcopy(t) == t and t != Table(t.columns)
    assert t != t.take([0, 1]) and t != Table(dict(reversed(t.columns.items())), "losses")
    assert Table({"a": [1]}) != Table({"a": [1.0]}) and Table({"a": [1]}) != 1
    with pytest.raises(TypeError):
        hash(t)
    assert pickle.loads(pickle.dumps(t)) == t  # workers send tables


def test_digest() -> None:
    t = study_table()
    d = t.digest()
    assert d == Table(t.columns, "other caption").digest() and len(d) == 64
    assert d == Table({**t.columns, "seconds": [1.0, 2.0, 3.0]}).digest()
    assert d != Table({**t.columns, "seconds": [1.0, 2.0, 3.0]}).digest(exclude=())
    assert t.digest(exclude=("loss",)) == t.digest("loss") != d
    assert d != t.take([1, 0, 2]).digest()
    changed = {name: column.copy() for name, column in t.columns.items()}
    changed["loss"][0] = np.nextafter(0.125, 1)
    assert Table(changed).digest() != d
    # Types, signs of zero and the borders between texts count; signs of NaN, byte order and width of text do not.
    assert Table({"a": [1]}).digest() != Table({"a": [1.0]}).digest()
    assert Table({"a": [0.0]}).digest() != Table({"a": [-0.0]}).digest()
    assert Table({"a": ["ab", "c"]}).digest() != Table({"a": ["a", "bc"]}).digest()
    assert Table({"a": [math.nan]}).digest() == Table({"a": -np.array([math.nan])}).digest()
    assert Table({"a": np.array([1.5], dtype=">f8")}).digest() == Table({"a": [1.5]}).digest()
    assert Table({"a": np.array(["x"], dtype="U9")}).digest() == Table({"a": ["x"]}).digest()
    assert Table({"a": ["\udcff"]}).digest() != Table({"a": ["?"]}).digest()
    code = (
        "import math\nfrom probnn.studies import Table\n"
        "print(Table({'n': [1, 2], 's': ['a', 'é'], 'x': [0.1, math.inf], 'b': [True, False]}).digest())"
    )
    here = Table({"n": [1, 2], "s": ["a", "é"], "x": [0.1, math.inf], "b": [True, False]}).digest()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    # Pinned: the same on every machine and in every version, or tables cannot be compared across them.
    assert here == there == "9cc7bb93acb20bf703c6556f58a2997545ae835b8b82cdcdb00b0ed0761921a2"


def test_repr_is_aligned_and_says_how_much_is_left() -> None:
    t = Table({"n": range(100), "word": ["x" * 80] * 100}, "caption")
    lines = repr(t).splitlines()
    assert lines[0] == "caption" and lines[-1] == "... 40 more rows (100 in all)" and len(lines) == 63
    assert lines[2].startswith(" 0  xxx") and lines[2].endswith("x…") and len(lines[2]) == 52
    assert "(no rows)" in repr(Table({"a": []})) and repr(Table({})) == "(no columns)"
    html = Table({"a<": ["<b>"]})._repr_html_()
    assert "&lt;b&gt;" in html and "<b>" not in html and "a&lt;" in html


@pytest.mark.parametrize(
    "x, shown",
    [
        (0.12345, "0.123"),
        (999.96, "1000"),
        (1352.0, "1352"),
        (12345.6, "12300"),
        (-0.5, "-0.5"),
        (0.0001234, "0.000123"),
        (1.239e-5, "1.24e-05"),
        (1234567.5, "1.23e+06"),
        (1e-5, "1e-05"),
        (-0.0, "0"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (7, "7"),
        (12345678901, "12345678901"),
        (True, "True"),
        ("text", "text"),
    ],
)
def test_numbers_as_text(x: object, shown: str) -> None:
    assert text.number(x, 3) == shown


def test_rounding_loses_no_more_than_asked(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for x in (rng.standard_normal(500) * 10.0 ** rng.integers(-12, 12, 500)).tolist():
        assert float(text.number(x, 4)) == float(f"{x:.3e}") or float(x).is_integer()


@pytest.mark.parametrize(
    "value, error, shown",
    [
        (0.12345, 0.0123, "0.123 (0.012)"),
        (1234.5, 123.0, "1230 (120)"),
        (0.99, 0.0996, "0.99 (0.10)"),
        (12, 1.0, "12.0 (1.0)"),
        (-0.0001, 0.1, "0.00 (0.10)"),
        (-1.2345e-10, 1.2e-12, "-1.234e-10 (0.012e-10)"),
        (3e7, 2e5, "3.000e7 (0.020e7)"),
        (0.12345, math.nan, "0.123 (–)"),
        (0.12345, 0.0, "0.123 (0)"),
        (math.inf, math.nan, "inf (–)"),
        (2.5, math.inf, "2.5 (inf)"),
        (0.001, 5.0, "0.0 (5.0)"),
        (0.0, 0.01, "0.000 (0.010)"),
    ],
)
def test_digits_follow_the_error(value: float, error: float, shown: str) -> None:
    assert text.with_error(value, error) == shown


def test_markdown() -> None:
    t = Table({"n": [10, 20], "what": ["a|b\nc", "<x>"], "rate": [0.5, -math.inf]}, "Rates")
    assert t.to_markdown() == (
        "Rates\n\n| n | what | rate |\n| ---: | --- | ---: |\n| 10 | a\\|b c | 0.5 |\n| 20 | &lt;x> | -inf |\n"
    )
    assert "0.1234568" in Table({"x": [0.123456789]}).to_markdown(digits=7)
    with pytest.raises(DomainError, match="digits"):
        t.to_markdown(digits=0)


def test_latex() -> None:
    t = Table({"a_b": ["50% & {x}", "~^\\<"], "x": [-0.5, 1.5e-7], "y": [math.inf, math.nan]})
    assert t.to_latex() == (
        "\\begin{tabular}{lrr}\n\\toprule\na\\_b & x & y \\\\\n\\midrule\n"
        "50\\% \\& \\{x\\} & $-0.5$ & $\\infty$ \\\\\n"
        "\\textasciitilde{}\\textasciicircum{}\\textbackslash{}\\textless{} & $1.5 \\times 10^{-7}$ & nan \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )
    captioned = Table({"x": [1]}, "100% of it").to_latex()
    assert captioned.startswith("\\begin{table}\n\\centering\n\\caption{100\\% of it}\n\\begin{tabular}")
    assert captioned.endswith("\\end{tabular}\n\\end{table}\n")


@pytest.mark.parametrize("decimal", [".", ","])
def test_csv_round_trip(decimal: str, tmp_path: Path) -> None:
    t = Table({"x": [0.1, math.nan, 1e-300], "k": [2**62 + 1, -1, 0], "word": ['a;b,"c"', "é\nf", ""], "b": [True] * 3})
    path = tmp_path / "t.csv"
    t.to_csv(path, decimal=decimal)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="," if decimal == "." else ";"))
    assert tuple(rows[0]) == t.names and [r[2] for r in rows[1:]] == t["word"].tolist()
    read = [float(r[0].replace(",", ".")) for r in rows[1:]]
    assert np.array_equal(read, t["x"], equal_nan=True) and [int(r[1]) for r in rows[1:]] == t["k"].tolist()
    assert os.listdir(tmp_path) == ["t.csv"]
    with pytest.raises(DomainError, match="decimal"):
        t.to_csv(path, decimal=";")


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        study_table().to_csv(tmp_path / "missing" / "t.csv")
    assert os.listdir(tmp_path) == []


def test_parquet_round_trip(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    t = study_table()
    t.to_parquet(tmp_path / "t.parquet")
    back = parquet.read_table(tmp_path / "t.parquet")
    assert Table({name: back[name].to_numpy() for name in back.column_names}, "losses") == t
    assert os.listdir(tmp_path) == ["t.parquet"]


def test_pandas() -> None:
    pytest.importorskip("pandas")
    t = study_table()
    frame = t.to_pandas()
    assert list(frame.columns) == list(t.names)
    assert Table({name: frame[name].to_numpy() for name in frame}, "losses") == t
    frame.loc[0, "loss"] = 7.0
    assert t["loss"][0] == 0.125


def test_xarray_fills_what_is_missing() -> None:
    pytest.importorskip("xarray")
    t = study_table()
    data = t.to_xarray(("n", "method"))
    assert data["method"].values.tolist() == ["ols", "wls"] and data["n"].values.tolist() == [100, 1000]
    assert data["loss"].dims == ("n", "method") and float(data["loss"].sel({"n": 100, "method": "ols"})) == 0.125
    assert math.isnan(data["loss"].sel({"n": 1000, "method": "wls"})) and data["loss"].dtype == np.float64
    seeds = data["seed"].sel({"method": "ols"}).values.tolist()
    assert seeds == [2**62, 3] and data["seed"].sel({"n": 100, "method": "wls"}).item() == 2**62 + 1  # not rounded
    assert math.isnan(data["ok"].sel({"n": 1000, "method": "wls"})) and data.attrs == {"caption": "losses"}
    full = Table({"a": ["z", "b"], "k": [1, 2], "w": ["p", "q"]}).to_xarray(["a"])
    assert full["a"].values.tolist() == ["z", "b"] and full["k"].dtype == np.int64 and full["w"].dtype.kind == "U"
    assert Table({"a": ["z", "b"], "c": [1, 2], "w": ["p", "q"]}).to_xarray(["a", "c"])["w"].values.tolist() == [
        ["p", ""],
        ["", "q"],
    ]
    assert Table({"a": [], "x": []}).to_xarray(["a"])["x"].shape == (0,)
    with pytest.raises(DomainError, match="several rows"):
        t.to_xarray(["n"])
    for dims in ("n", (), ("n", "n"), ("m",)):
        with pytest.raises(DomainError):
            t.to_xarray(dims)


@pytest.mark.parametrize("module, call", [("pyarrow", "to_parquet"), ("pandas", "to_pandas"), ("xarray", "to_xarray")])
def test_says_what_is_not_installed(module: str, call: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    arguments = {"to_parquet": [tmp_path / "t"], "to_pandas": [], "to_xarray": [["n"]]}[call]
    with pytest.raises(UnsupportedError, match=f"needs {module}; install it"):
        getattr(study_table(), call)(*arguments)


def test_importing_tables_imports_no_extra() -> None:
    code = "import json, sys, probnn.studies\nprint(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"pandas", "xarray", "pyarrow", "matplotlib", "joblib", "scipy.stats"} & set(json.loads(found))
