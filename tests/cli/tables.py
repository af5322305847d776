"""Tables as people have them, and a way to run the command line on them."""

from __future__ import annotations

import random
from pathlib import Path

HEADER = ["temperature", "pressure", "solvent", "yield"]


def experiments(num_rows: int = 24, seed: int = 0) -> list[list[str]]:
    """Rows of a smooth function with little noise."""
    draw = random.Random(seed)
    rows = []
    for i in range(num_rows):
        temperature = 20 + 5 * (i if i in (0, 12) else draw.randrange(13))
        pressure, solvent = round(draw.uniform(1, 5), 2), draw.choice(["THF", "DMF"])
        value = 50 - ((temperature - 60) / 20) ** 2 * 8 - (pressure - 2) ** 2 + 5 * (solvent == "THF")
        rows.append([str(temperature), str(pressure), solvent, f"{value + draw.gauss(0, 0.2):.3f}"])
    return rows


def write(
    path: Path,
    rows: list[list[str]],
    header: list[str] = HEADER,
    *,
    delimiter: str = ",",
    decimal: str = ".",
    bom: bool = False,
    newline: str = "\n",
) -> Path:
    """A table in the dialect of somebody's spreadsheet."""
    lines = [delimiter.join(header)]
    for row in rows:
        lines.append(delimiter.join(c.replace(".", decimal) if c[:1].isdigit() else c for c in row))
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + (newline.join(lines) + newline).encode())
    return path


SPACE = """\
[temperature]
type = "integer"
low = 20
high = 80
step = 5

[pressure]
type = "real"
low = 1
high = 5

[solvent]
type = "categorical"
choices = ["THF", "DMF"]
"""
