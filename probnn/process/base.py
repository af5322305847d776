"""The one interface: a distribution over functions."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from .. import io, validation
from .. import random as rnd
from ..errors import DomainError, UnsupportedError
from ..likelihoods import Likelihood
from ..random import Device, Dtype, Shape, Source

if TYPE_CHECKING:  # BoTorch pulls in gpytorch and Pyro, too heavy for `import probnn`
    from botorch.posteriors import Posterior

    from .empirical import EmpiricalProcess


class RandomFunctions:
    """Functions drawn from a process: the same ones at every call.

    Calling them with X ``... x n x d`` gives ``sample_shape x ... x n x c``, differentiable in X.
    """

    def __init__(self, evaluate: Callable[[Tensor], Tensor], sample_shape: torch.Size, process: StochasticProcess):
        self._evaluate = evaluate
        self.sample_shape, self.input_dim, self.output_dim = sample_shape, process.input_dim, process.output_dim
        self._like = torch.empty(0, dtype=process.dtype, device=process.device)

    def __call__(self, X: Tensor) -> Tensor:
        validation.inputs("RandomFunctions", X, self.input_dim, like=self._like)
        return self._evaluate(X)

    def __repr__(self) -> str:
        return f"RandomFunctions({tuple(self.sample_shape)}: {self.input_dim} inputs -> {self.output_dim} channels)"


class StochasticProcess(ABC):
    """A distribution over functions f from R^d to c channels.

    Public methods check, shape and seed; a subclass (a frozen dataclass with ``eq=False``) gives
    `input_dim`, `output_dim`, `dtype`, `device` and writes hooks: :meth:`_sample_functions`, and where
    it knows better :meth:`_sample`, :meth:`_sample_tasks`, :meth:`_predict`, :meth:`_condition`.

    Attributes:
        input_dim: Number of inputs d.
        output_dim: Number of channels c.
        dtype: Precision of inputs, draws and predictions.
        device: Where they live.
        joint: ``"exact"``, ``"copula"``, ``"autoregressive"`` or ``"independent"``: how values at
            several points hang together. None: only marginals are known, and joint draws raise.
        models: ``"function"``, or ``"outcome"`` for a process of noisy outcomes.
        prior: The process before the data, of a fitted process; None otherwise.
        likelihood: The law of the outcomes, of a fitted process; None otherwise.
        info: What happened during the fit, of a fitted process; None otherwise.
    """

    joint: ClassVar[str | None] = "exact"
    models: ClassVar[str] = "function"
    prior: StochasticProcess | None = None
    likelihood: Likelihood | None = None
    info: Any = None
    input_dim: int
    output_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def num_outcomes(self) -> int:
        """Number of columns m of Y."""
        return self.likelihood.outcomes(self.output_dim) if self.likelihood else self.output_dim

    @property
    def num_predictions(self) -> int:
        """Number of columns of :meth:`predict`: m, but one a class for a categorical outcome."""
        return self.likelihood.predictions(self.output_dim) if self.likelihood else self.output_dim

    def sample_functions(self, sample_shape: Shape = (), *, generator: Source = None) -> RandomFunctions:
        """Draw functions that can be evaluated anywhere, any number of times.

        Args:
            sample_shape: How many functions, as a shape.
            generator: Source of randomness; None: torch's global stream.

        Returns:
            A callable X ``... x n x d -> sample_shape x ... x n x c``.

        Raises:
            UnsupportedError: The process knows no functions (`joint` is neither exact nor copula).
        """
        shape = self._enter("sample_functions", sample_shape, generator)
        if self.joint not in ("exact", "copula"):
            raise UnsupportedError(
                f"{type(self).__name__}.sample_functions: the process has joint={self.joint!r} and no function "
                "draws; use predict for marginals, or sample where joint is set"
            )
        return RandomFunctions(self._sample_functions(shape, generator), shape, self)

    def sample(self, X: Tensor, sample_shape: Shape = (), *, generator: Source = None) -> Tensor:
        """Draw function values; one function a sample index, shared by all batch elements of X.

        Args:
            X: Inputs ``... x n x d``.
            sample_shape: How many functions, as a shape.
            generator: Source of randomness; None: torch's global stream.

        Returns:
            Values ``sample_shape x ... x n x c``.

        Raises:
            ShapeError, DomainError, NonFiniteError: X is no such tensor.
            UnsupportedError: The process knows marginals only, and n > 1.
        """
        shape = self._enter("sample", sample_shape, generator, X)
        return self._sample(X, shape, generator)

    def sample_tasks(self, X: Tensor, *, generator: Source = None) -> Tensor:
        """Draw an independent function for every batch element of X.

        Args:
            X: Inputs ``... x n x d``.
            generator: Source of randomness; None: torch's global stream.

        Returns:
            Values ``... x n x c``.

        Raises:
            ShapeError, DomainError, NonFiniteError: X is no such tensor.
            UnsupportedError: The process knows marginals only, and n > 1.
        """
        self._enter("sample_tasks", (), generator, X)
        return self._sample_tasks(X, generator)

    def predict(self, X: Tensor, *, observation_noise: bool = False) -> Posterior:
        """The predictive distribution of the outcomes' mean function, or of new outcomes.

        Deterministic: closed form where there is one, else every kept draw, else 256 draws from a
        private generator.

        Args:
            X: Inputs ``... x n x d``.
            observation_noise: Add the noise of the likelihood: a normal with the variance of the outcomes given
                the function. For outcomes that are not normal (Student-t, counts, classes) mean and variance of the
                prediction are right, its samples and quantiles are not those of the outcomes;
                ``likelihood.sample`` draws such. The variance of Student-t noise is infinite for df <= 2.

        Returns:
            A BoTorch posterior over ``... x n x m``.

        Raises:
            ShapeError, DomainError, NonFiniteError: X is no such tensor, or `observation_noise` no truth value.
            UnsupportedError: Noise is asked of a process without likelihood.
        """
        where = f"{type(self).__name__}.predict"
        validation.inputs(where, X, self.input_dim, like=self)
        if not isinstance(observation_noise, bool):
            raise DomainError(
                f"{where}: observation_noise must be True or False, got {observation_noise!r}; noise of given "
                "variances is added by probnn.ProcessModel(process).posterior"
            )
        if observation_noise and self.likelihood is None and self.models == "function":
            raise UnsupportedError(f"{where}: no likelihood, so no observation noise; fit the process first")
        posterior = self._predict(X, observation_noise)
        if self.joint is None:
            from ..predictive import MarginalPosterior

            return MarginalPosterior(posterior, type(self).__name__)
        return posterior

    def condition(self, X: Tensor, Y: Tensor, *, noise_variance: Tensor | None = None) -> StochasticProcess:
        """The same process knowing more, without fitting it again.

        Exact for Gaussian and Student-t processes, reweighting for draws (their `ess` says how far
        that carries). Leading batch dimensions give a batch of processes.

        Args:
            X: Inputs ``... x n x d``.
            Y: Outcomes ``... x n x m``.
            noise_variance: Known noise variances of the rows, like Y (Gaussian likelihoods).

        Returns:
            The process given the data.

        Raises:
            ShapeError, DomainError, NonFiniteError: X, Y or the variances do not fit; the message says how.
            UnsupportedError: The process can only be fitted again.
        """
        where = f"{type(self).__name__}.condition"
        validation.inputs(where, X, self.input_dim, like=self)
        validation.outcomes(where, "Y", Y, X, self.num_outcomes)
        if noise_variance is not None:
            validation.variances(where, noise_variance, X, self.num_outcomes)
        if self.likelihood is not None:
            self.likelihood.check_outcomes(where, Y)
        return self._condition(X, Y, noise_variance)

    def draws(self, num_draws: int = 256, *, seed: int = 0) -> EmpiricalProcess:
        """Freeze draws of the parameters, of a :class:`ParametricProcess`.

        Args:
            num_draws: How many.
            seed: Same seed, same machine: the same draws.

        Returns:
            The draws, as a process.

        Raises:
            UnsupportedError: The process has no parameters.
        """
        raise UnsupportedError(
            f"{type(self).__name__}.draws: the process has no parameters to draw; sample_functions(({num_draws},)) "
            "draws functions, and predict gives what it knows in closed form"
        )

    def to_arviz(self, **options: Any) -> Any:
        """Draws as ArviZ groups, of an :class:`EmpiricalProcess`; see :func:`probnn.bridges.to_arviz`.

        Args:
            **options: Those of :func:`probnn.bridges.to_arviz`.

        Returns:
            ArviZ's container of groups.

        Raises:
            UnsupportedError: The process is not made of draws; the message says how to get some.
        """
        raise UnsupportedError(
            f"{type(self).__name__}.to_arviz: ArviZ diagnoses and shows draws of parameters, of which the process has "
            "none; use predict(X) for its means, variances and quantiles, and sample(X, (256,)) for function values"
        )

    def to(self, target: torch.dtype | Device = None, *, device: Device = None, dtype: Dtype = None) -> Self:
        """A copy on another device or in another precision.

        Args:
            target: A dtype or a device, as torch's ``.to`` takes it.
            device: The device; None: as it is.
            dtype: A floating-point dtype; None: as it is.

        Returns:
            The copy, which shares what did not change.

        Raises:
            DomainError: The dtype is not floating point, there is no such device, or one was given twice.
        """
        where = f"{type(self).__name__}.to"
        if target is not None:
            given = "dtype" if isinstance(target, torch.dtype) else "device"
            if (dtype if given == "dtype" else device) is not None:
                raise DomainError(f"{where}: got a {given} twice; give it once")
            device, dtype = (device, target) if isinstance(target, torch.dtype) else (target, dtype)
        return moved(self, validation.device(where, device), validation.float_dtype(where, dtype))

    def save(self, path: str) -> None:
        """Write the process to one file; :func:`probnn.load` gives it back.

        Args:
            path: The file; an existing one is replaced in one step.

        Raises:
            SerializationError: A part of it has no saved form, or the file cannot be written.
        """
        io.save(self, path)

    def _take(self, source: Any, *names: str) -> None:
        """Have the attributes of these names as they are of `source`: for the `__post_init__` of a frozen dataclass."""
        for name in names:
            object.__setattr__(self, name, getattr(source, name))

    def _enter(self, verb: str, shape: Any, generator: Any, X: Tensor | None = None) -> torch.Size:
        where = f"{type(self).__name__}.{verb}"
        validation.noise_generator(where, generator)
        if X is not None:
            validation.inputs(where, X, self.input_dim, like=self)
            if self.joint is None and X.shape[-2] > 1:
                raise UnsupportedError(
                    f"{where}: the process knows marginals only (joint=None), so no joint values at {X.shape[-2]} "
                    "points; ask one point at a time, or choose joint='autoregressive' or 'independent'"
                )
        return validation.sample_shape(where, shape)

    @abstractmethod
    def _sample_functions(self, shape: torch.Size, generator: Source) -> Callable[[Tensor], Tensor]: ...

    def _sample(self, X: Tensor, shape: torch.Size, generator: Source) -> Tensor:
        return self._sample_functions(shape, generator)(X)

    def _sample_tasks(self, X: Tensor, generator: Source) -> Tensor:
        tasks = [self._sample(x, torch.Size(), generator) for x in X.reshape(-1, *X.shape[-2:])]
        values = torch.stack(tasks) if tasks else X.new_empty(0)
        return values.reshape(*X.shape[:-1], self.output_dim)

    def _predict(self, X: Tensor, noise: bool) -> Posterior:
        f = self._sample(X, torch.Size([256]), rnd.generator_from(0)).movedim(0, -3)
        return self._of_draws(f, self._no_psi(f, 1), None, noise)

    def _of_draws(self, f: Tensor, psi: Tensor, log_weights: Tensor | None, noise: bool) -> Posterior:
        """The prediction of draws f ``... x S x n x c`` with psi ``S x 1 x R`` beside them."""
        from ..predictive import DrawsPosterior
        from ..predictive.mixture import root

        if self.likelihood is None:
            return DrawsPosterior(f, log_weights)
        if noise and (law := self.likelihood.predictive(f, psi, log_weights)) is not None:
            return law
        mean, variance = self.likelihood.moments(f, psi)
        return DrawsPosterior(mean, log_weights, root(variance) if noise else None)

    def _no_psi(self, like: Tensor, *shape: int) -> Tensor:
        """psi ``shape x 0`` of a process without draws of psi; zeros for an inferred one would be a noise of 1."""
        if self.likelihood is not None and self.likelihood.num_parameters:
            raise UnsupportedError(
                f"{type(self).__name__}: its likelihood has inferred parameters, which the process does not draw; "
                "give it a likelihood without any, such as Gaussian(noise=0.1), or write the hook _predict (of a "
                "ParametricProcess: _sample_joint)"
            )
        return like.new_zeros(*shape, 0)

    def _condition(self, X: Tensor, Y: Tensor, noise_variance: Tensor | None) -> StochasticProcess:
        raise UnsupportedError(
            f"{type(self).__name__}.condition: cannot be conditioned without fitting again; "
            "use an inference method's fit on all data, or condition its draws: process.draws().condition(...)"
        )


def moved(x: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    """`x` with every tensor in it moved; shared where nothing changes."""
    if isinstance(x, Tensor):
        return x.to(device=device, dtype=dtype if x.is_floating_point() else None)
    if isinstance(x, torch.dtype):
        return dtype or x
    if isinstance(x, torch.device):
        return device or x
    if isinstance(x, torch.nn.Module):
        return copy.deepcopy(x).to(device=device, dtype=dtype)
    if isinstance(x, tuple) and not hasattr(x, "_fields"):
        return tuple(moved(v, device, dtype) for v in x)
    if isinstance(x, dict):
        return {k: moved(v, device, dtype) for k, v in x.items()}
    if is_dataclass(x) and not isinstance(x, type):
        old = {f.name: getattr(x, f.name) for f in fields(x) if f.init}
        new = {name: moved(value, device, dtype) for name, value in old.items()}
        return x if all(new[name] is old[name] for name in old) else replace(x, **new)
    return x
