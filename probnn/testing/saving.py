"""Checks of saving and loading."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

import torch

from .. import io
from ..errors import SerializationError
from ..process import StochasticProcess
from .common import expect, instance, points, raises


def check_saving(process: StochasticProcess, *, network: Any = None) -> None:
    """Check that a process comes back from its file bit for bit, and that broken files are refused.

    Args:
        process: The process.
        network: The module of a `ModuleNetwork`, where the process holds one.

    Raises:
        AssertionError: The contract is broken; the message says where.
        DomainError: An argument is of another type.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    hint = "a prior or a posterior; probnn.save takes other objects too"
    instance("check_saving", "process", process, StochasticProcess, hint)
    name = type(process).__name__
    X = points((3, process.input_dim), process.dtype, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "process.safetensors")
        process.save(path)
        expect(os.listdir(folder) == ["process.safetensors"], f"{name}.save: leaves {os.listdir(folder)}")
        loaded = io.load(path, network=network)
        expect(type(loaded) is type(process), f"load: a {type(loaded).__name__} came back, not a {name}")
        before, after = process.predict(X), loaded.predict(X)
        expect(torch.equal(before.mean, after.mean), f"{name}: another mean after loading")
        expect(torch.equal(before.variance, after.variance), f"{name}: another variance after loading")
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["probnn"])
        expect(header["format"] == io.FORMAT, f"{name}.save: format {header['format']}")
        other = os.path.join(folder, "other.safetensors")
        header["format"] = 99
        save_file(load_file(path), other, metadata={"probnn": json.dumps(header)})
        raises(SerializationError, lambda: io.load(other, network=network), f"{name} of a newer format", "99")
        with open(path, "rb") as file_in, open(other, "wb") as file_out:
            content = file_in.read()
            file_out.write(content[: len(content) // 2])
        raises(SerializationError, lambda: io.load(other, network=network), f"half a file of {name}")
