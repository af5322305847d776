"""Plain forms of what a model holds: its tensors for `state_dict`, its transforms for files."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from botorch.models.transforms.input import AffineInputTransform, InputStandardize, Normalize
from botorch.models.transforms.outcome import Standardize
from torch import Tensor, nn

from ..errors import SerializationError
from ..process import EmpiricalProcess, StochasticProcess

_FLAGS = ("transform_on_train", "transform_on_eval", "transform_on_fantasize", "reverse")


def tensors(x: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor within a process, under the path of fields that leads to it."""
    if isinstance(x, Tensor):
        yield path, x.detach()
    elif isinstance(x, nn.Module):
        for name, value in x.state_dict().items():
            if isinstance(value, Tensor):
                yield f"{path}.{name}", value.detach()
    elif isinstance(x, (tuple, list)):
        for i, value in enumerate(x):
            yield from tensors(value, f"{path}.{i}")
    elif isinstance(x, dict):
        for name, value in x.items():
            yield from tensors(value, f"{path}.{name}")
    elif is_dataclass(x) and not isinstance(x, type):
        for name, value in _parts(x).items():
            yield from tensors(value, f"{path}.{name}")


def with_tensors(x: Any, state: dict[str, Tensor], path: str) -> Any:
    """`x` with the tensors :func:`tensors` found in another object of the same make."""
    if isinstance(x, Tensor) or (x is None and path in state):
        return state.get(path)
    if isinstance(x, nn.Module):
        x = copy.deepcopy(x)
        x.load_state_dict({k.removeprefix(f"{path}."): v for k, v in state.items() if k.startswith(f"{path}.")})
        return x
    if isinstance(x, tuple) and not hasattr(x, "_fields"):
        return tuple(with_tensors(value, state, f"{path}.{i}") for i, value in enumerate(x))
    if isinstance(x, dict):
        return {name: with_tensors(value, state, f"{path}.{name}") for name, value in x.items()}
    if is_dataclass(x) and not isinstance(x, type):
        old = _parts(x)
        new = {name: with_tensors(value, state, f"{path}.{name}") for name, value in old.items()}
        return x if all(new[name] is old[name] for name in old) else replace(x, **new)
    return x


def _parts(x: Any) -> dict[str, Any]:
    # What happened during a fit is no part of the model's state.
    return {f.name: getattr(x, f.name) for f in fields(x) if f.init and f.name != "info"}


def tensors_of(process: StochasticProcess, source: StochasticProcess) -> dict[str, Tensor]:
    """Those of a model: of its process, and of the source where that is another one."""
    own = dict(tensors(process, "process"))
    return own if source is process else {**own, **dict(tensors(source, "source"))}


def batch_shape(process: StochasticProcess) -> torch.Size:
    """The leading dimensions of the data a process was conditioned on."""
    if isinstance(process, EmpiricalProcess):
        return torch.Size() if process.log_weights is None else process.log_weights.shape[:-1]
    return torch.Size(getattr(process, "_batch_shape", ()))


def digest(theta: Tensor) -> int:
    """Identifies draws, alike in every interpreter: equal draws share their samples, others do not."""
    return zlib.crc32(theta.detach().cpu().contiguous().numpy().tobytes())


def encode_transform(name: str, transform: nn.Module | None) -> dict[str, Any] | None:
    """An affine input transform or a `Standardize` as numbers and tensors."""
    if transform is None:
        return None
    kind = type(transform)
    if kind in (AffineInputTransform, Normalize, InputStandardize):
        return {
            "kind": kind.__name__,
            "d": transform._d,
            "offset": transform._offset,
            "coefficient": transform._coefficient,
            "indices": getattr(transform, "indices", None),
            "center": getattr(transform, "center", None),
            **{flag: getattr(transform, flag) for flag in _FLAGS},
        }
    if kind is Standardize:
        outputs: Any = transform._outputs
        return {
            "kind": "Standardize",
            "outputs": None if outputs is None else tuple(outputs),
            "means": transform.means,
            "stdvs": transform.stdvs,
            "variances": transform._stdvs_sq,
        }
    raise SerializationError(
        f"save: {name} is a {kind.__module__}.{kind.__qualname__}, which cannot be saved; Normalize, InputStandardize, "
        "AffineInputTransform and Standardize can"
    )


def decode_transform(config: dict[str, Any] | None) -> nn.Module | None:
    """The inverse of :func:`encode_transform`."""
    if config is None:
        return None
    if config["kind"] == "Standardize":
        return standardize(config["means"], config["stdvs"], config["variances"], config["outputs"])
    flags = {flag: config[flag] for flag in _FLAGS}
    indices, d = config["indices"], config["d"]
    if config["kind"] == "Normalize":
        transform = Normalize(d, indices=indices, center=config["center"], **flags)
    elif config["kind"] == "InputStandardize":
        transform = InputStandardize(d, indices=indices, **flags)
    else:
        transform = AffineInputTransform(d, config["coefficient"], config["offset"], indices=indices, **flags)
    transform._offset, transform._coefficient = config["offset"], config["coefficient"]
    return transform


def standardize(
    means: Tensor, stdvs: Tensor, variances: Tensor | None = None, outputs: tuple[int, ...] | None = None
) -> Standardize:
    """A trained `Standardize` of given means and standard deviations, ``1 x m`` each."""
    transform = Standardize(means.shape[-1], outputs=None if outputs is None else list(outputs))
    transform.means, transform.stdvs = means, stdvs
    transform._stdvs_sq = stdvs.square() if variances is None else variances
    transform._is_trained = torch.tensor(True)
    return transform
