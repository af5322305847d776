"""Copies of gpytorch kernels and means, in memory and in files (a known list, by arguments and state).

This module imports gpytorch, so nothing imports it before there is a kernel.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
from typing import Any

import gpytorch
import torch
from botorch.models.kernels.infinite_width_bnn import InfiniteWidthBNNKernel
from gpytorch import constraints, kernels, means, priors
from gpytorch.utils.transforms import inv_sigmoid, inv_softplus

from .. import random as rnd
from ..errors import DomainError, SerializationError
from ..io import register_codec

# Constructor arguments beside those every kernel has; those that are attributes of the same name.
_known: dict[str, tuple[type, tuple[str, ...]]] = {}
_CONSTRAINTS = {
    constraints.Positive: (),
    constraints.GreaterThan: ("lower_bound",),
    constraints.LessThan: ("upper_bound",),
    constraints.Interval: ("lower_bound", "upper_bound"),
}
_PRIORS = {
    priors.LogNormalPrior: ("loc", "scale"),
    priors.NormalPrior: ("loc", "scale"),
    priors.GammaPrior: ("concentration", "rate"),
    priors.HalfNormalPrior: ("scale",),
    priors.HalfCauchyPrior: ("scale",),
}
_CONSTRAINTS_BY_NAME: dict[str, Any] = {cls.__name__: cls for cls in _CONSTRAINTS}
_PRIORS_BY_NAME: dict[str, Any] = {cls.__name__: cls for cls in _PRIORS}
_TRANSFORMS: dict[str | None, tuple[Any, Any]] = {
    "softplus": (torch.nn.Softplus(), inv_softplus),
    "sigmoid": (torch.sigmoid, inv_sigmoid),
    "exp": (torch.exp, torch.log),
    None: (None, None),
}


def register_kernel(cls: type, *arguments: str) -> type:
    """Let a gpytorch kernel or mean be saved.

    Args:
        cls: The class; its constructor takes the arguments below, ``active_dims`` and ``ard_num_dims`` where they are
            set, and ``<name>_prior`` for the hyper-parameters that have one.
        *arguments: Names of constructor arguments that are attributes too, such as ``"depth"``.
    """
    _known[_name(cls)] = (cls, arguments)
    return cls


def _name(cls: type) -> str:
    parts = cls.__module__.split(".")
    return f"{'.'.join(parts[:2] if parts[0] == 'probnn' else parts[:1])}.{cls.__qualname__}"


for _cls, _arguments in (
    (kernels.RBFKernel, ()),
    (kernels.MaternKernel, ("nu",)),
    (kernels.RQKernel, ()),
    (kernels.PeriodicKernel, ()),
    (kernels.LinearKernel, ()),
    (kernels.ConstantKernel, ()),
    (kernels.ScaleKernel, ()),
    (kernels.AdditiveKernel, ()),
    (kernels.ProductKernel, ()),
    (InfiniteWidthBNNKernel, ("depth", "acos_eps")),
    (means.ZeroMean, ()),
    (means.ConstantMean, ()),
    (means.LinearMean, ()),
):
    register_kernel(_cls, *_arguments)


def _refuse(x: Any, why: str) -> SerializationError:
    return SerializationError(f"save: a {type(x).__module__}.{type(x).__qualname__} cannot be saved: {why}")


def _describe(module: Any) -> dict[str, Any]:
    """Class and constructor arguments of a kernel or mean, and of what it is made of."""
    name = _name(type(module))
    if _known.get(name, (None,))[0] is not type(module):
        raise _refuse(module, "it is not on the list of kernels and means with a saved form")
    arguments: dict[str, Any] = {argument: getattr(module, argument) for argument in _known[name][1]}
    if isinstance(module, means.LinearMean):
        arguments = {"input_size": module.weights.shape[-2], "bias": module.bias is not None}
    described: dict[str, Any] = {"class": name, "arguments": arguments}
    if isinstance(module, (kernels.AdditiveKernel, kernels.ProductKernel)):
        described["parts"] = tuple(_describe(part) for part in module.kernels)
    elif isinstance(module, kernels.ScaleKernel):
        described["base"] = _describe(module.base_kernel)
    for argument in ("ard_num_dims", "active_dims"):
        value = getattr(module, argument, None)
        inherited = "base" in described and described["base"]["arguments"].get(argument) is not None
        if value is not None and not inherited:
            arguments[argument] = tuple(value.tolist()) if torch.is_tensor(value) else value
    described["constraints"] = {
        key.removesuffix("_constraint"): _describe_constraint(constraint)
        for key, constraint in module._constraints.items()
    }
    described["priors"] = {
        # A ConstantMean takes constant_prior and registers mean_prior.
        "constant" if key == "mean_prior" else key.removesuffix("_prior"): _describe_prior(entry[0])
        for key, entry in module._priors.items()
    }
    return described


def _describe_constraint(constraint: Any) -> dict[str, Any]:
    if type(constraint) not in _CONSTRAINTS:
        raise _refuse(constraint, "it is not among gpytorch's Positive, GreaterThan, LessThan and Interval")
    name = next((name for name, pair in _TRANSFORMS.items() if _same_transform(constraint, *pair)), "unknown")
    if name == "unknown":
        raise _refuse(constraint, "its transform is not softplus, sigmoid, exp or None, each with gpytorch's inverse")
    bounds = {bound: getattr(constraint, bound) for bound in _CONSTRAINTS[type(constraint)]}
    return {"class": type(constraint).__name__, "bounds": bounds, "transform": name}


def _same_transform(constraint: Any, transform: Any, inverse: Any) -> bool:
    own = constraint._transform
    if transform is None or own is None:
        return own is transform
    # Every Softplus is an object of its own.
    same = own is transform or (isinstance(transform, torch.nn.Softplus) and repr(own) == repr(transform))
    return same and constraint._inv_transform is inverse


def _describe_prior(prior: Any) -> dict[str, Any]:
    if type(prior) not in _PRIORS or prior._transform is not None:
        known = ", ".join(cls.__name__ for cls in _PRIORS)
        raise _refuse(prior, f"it is not among {known} without a transform")
    return {"class": type(prior).__name__, "arguments": {key: getattr(prior, key) for key in _PRIORS[type(prior)]}}


def _encode(module: Any) -> dict[str, Any]:
    frozen = tuple(name for name, parameter in module.named_parameters() if not parameter.requires_grad)
    config = {"module": _describe(module), "state": dict(module.state_dict()), "frozen": frozen}
    # The list above cannot know what else was done to an object: see that it comes back as it is.
    try:
        again = _decode(config)
    except (RuntimeError, TypeError) as error:
        raise _refuse(module, f"it cannot be made again from its arguments and state ({error})") from error
    state, of_priors, valued = again.state_dict(), _valued(module), _valued(again)
    same = state.keys() == module.state_dict().keys() and valued.keys() == of_priors.keys()
    same = same and all(torch.equal(state[key], value) for key, value in module.state_dict().items())
    same = same and all(torch.equal(valued[key], value) for key, value in of_priors.items())
    if not same:
        raise _refuse(module, "made again from its arguments and state it is not the same; was it changed by hand?")
    return config


def _valued(module: Any) -> dict[str, torch.Tensor]:
    """What each registered prior is a prior of."""
    return {name: closure(owner) for name, owner, _, closure, _ in module.named_priors()}


def _build(described: dict[str, Any]) -> Any:
    name = described["class"]
    if name not in _known and name.startswith("probnn."):
        package, _, attribute = name.rpartition(".")
        with contextlib.suppress(ImportError):  # the import registers it, if it is there
            getattr(importlib.import_module(package), attribute, None)
    if name not in _known:
        raise SerializationError(f"load: unknown kernel {name}; import the package that registers it")
    arguments = dict(described["arguments"])
    for key, of in described["priors"].items():
        arguments[f"{key}_prior"] = _PRIORS_BY_NAME[of["class"]](**of["arguments"])
    if "base" in described:
        arguments["base_kernel"] = _build(described["base"])
    module = _known[name][0](*(_build(part) for part in described.get("parts", ())), **arguments)
    for parameter, of in described["constraints"].items():
        transform, inverse = _TRANSFORMS[of["transform"]]
        constraint = _CONSTRAINTS_BY_NAME[of["class"]](**of["bounds"], transform=transform, inv_transform=inverse)
        module.register_constraint(parameter, constraint)
    return module


def _decode(config: dict[str, Any]) -> Any:
    state = config["state"]
    dtypes = {value.dtype for value in state.values() if value.is_floating_point()}
    with rnd.forked(rnd.generator_from(0)):  # a LinearMean draws its first weights
        module = _build(config["module"])
    for dtype in dtypes:
        module.to(dtype)
    module.load_state_dict(state)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in config["frozen"])
    return module


def copies(where: str, what: str, given: Any, count: int) -> tuple[Any, ...]:
    """A copy of the kernel (or mean, as `what` says) for each of `count` outcomes; None stays None for means."""
    parts = tuple(given) if isinstance(given, (tuple, list)) else (given,) * count
    if len(parts) != count:
        raise DomainError(f"{where}: expected one {what} or one for each of {count} outcomes, got {len(parts)}")
    of = kernels.Kernel if what == "kernel" else means.Mean
    for part in parts:
        if part is None and what == "mean":
            continue
        if not isinstance(part, of):
            raise DomainError(f"{where}: {what} must be a gpytorch {what}, got a {type(part).__name__}")
        if tuple(getattr(part, "batch_shape", ())):
            raise DomainError(
                f"{where}: {what} must have no batch shape, got {tuple(part.batch_shape)}; give a tuple of one {what} "
                "for each outcome, or a hyperprior"
            )
    return tuple(None if part is None else copy.deepcopy(part).eval() for part in parts)


register_codec(__name__, gpytorch.Module, _encode, _decode)
