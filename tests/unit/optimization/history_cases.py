"""A space with two targets, settings in it, and trials for its history."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from probnn.optimization import Categorical, Integer, Real, Space
from probnn.optimization.history import History
from probnn.optimization.trials import Trial

SPACE = Space(power=Real(0, 10), depth=Integer(1, 8), loss=Categorical(["a", "b"]))
HEADER = "trial,status,power,depth,loss,y,y_sem,z,z_sem,source,started,finished,note\n"
T0, T1 = "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"


def setting(number: int = 0) -> dict[str, Any]:
    return {"power": number + 1 / 3, "depth": 1 + number % 8, "loss": "ab"[number % 2]}


def done(number: int, **keywords: Any) -> Trial:
    values = {"y": math.pi * number, "z": -1e-300}
    return Trial(number, setting(number), "model", "complete", values, {"y": 0.1}, T0, T1, **keywords)


def open_(path: Path, **keywords: Any) -> History:
    return History(path, SPACE, ["y", "z"], **keywords)
