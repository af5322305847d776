"""A process in BoTorch's clothes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from botorch.acquisition.objective import PosteriorTransform
from botorch.models.model import Model
from botorch.models.transforms.input import InputTransform
from botorch.models.transforms.outcome import OutcomeTransform
from botorch.models.utils.assorted import fantasize as fantasize_flag
from botorch.posteriors import Posterior
from botorch.sampling.base import MCSampler
from botorch.utils.datasets import SupervisedDataset
from torch import Tensor, nn

from .. import validation
from ..errors import DegenerateWeightsWarning, DomainError, ShapeError, UnsupportedError, user_level
from ..predictive import DrawsPosterior, MarginalPosterior
from ..process import EmpiricalProcess, ParametricProcess, StochasticProcess
from ..process.empirical import MIN_ESS
from . import _posteriors, _state
from ._fantasies import imagined, is_student_t


class ProcessModel(Model):
    r"""A BoTorch model of any process.

    A parametric process is frozen into draws once, at construction, so that every acquisition value is a
    deterministic average over the same functions :math:`f_s` (Balandat et al., 2020, arXiv:1910.06403). New
    observations, real or fantasised, change the weights of the draws,
    :math:`w_s' \propto w_s \prod_i p(y_i \mid f_s(x_i))`: this is the process' own `condition`, cheap and exact for
    the draws at hand, but good for a few observations only: fit again on real data. Means and variances carry the
    Monte Carlo error of the draws (relative :math:`\sqrt{2/S}` in a variance), also where the process has a closed
    form. A process that is not parametric, such as a Gaussian process, keeps its closed forms.

    Works in a `ModelList` beside BoTorch's own models, with all of BoTorch's Monte Carlo, analytic, knowledge-
    gradient and pathwise acquisition functions. Where BoTorch's information-theoretic ones demand a Gaussian
    posterior, use :class:`ExpectedInformationGain` and :class:`MaxValueEntropy`.

    Args:
        process: The process, of transformed inputs and outcomes.
        num_draws: Number S of draws kept of a parametric process; draws that are there already are thinned to it.
        input_transform: BoTorch's, already fitted; applied to every X. The model takes it over.
        outcome_transform: BoTorch's, already fitted; undone in every posterior. The model takes it over.

    Attributes:
        process: The process asked for predictions (frozen draws where it was parametric).
        source: The process as given, for warm starts.

    Raises:
        DomainError: An argument is of the wrong type.

    Example:
        >>> import torch, probnn
        >>> net = probnn.MLP(input_dim=2, hidden=(8,))
        >>> prior = probnn.BayesianNetwork(net, probnn.priors.NormalWeights())
        >>> model = probnn.ProcessModel(prior, num_draws=64)
        >>> model.num_outputs, tuple(model.posterior(torch.zeros(5, 3, 2)).mean.shape)
        (1, (5, 3, 1))
    """

    def __init__(
        self,
        process: StochasticProcess,
        *,
        num_draws: int = 256,
        input_transform: InputTransform | None = None,
        outcome_transform: OutcomeTransform | None = None,
    ) -> None:
        validation.positive_int("ProcessModel", "num_draws", num_draws)
        if not isinstance(process, StochasticProcess):
            raise DomainError(f"ProcessModel: process must be a StochasticProcess, got a {type(process).__name__}")
        for name, transform in (("input_transform", input_transform), ("outcome_transform", outcome_transform)):
            if transform is not None and not isinstance(transform, nn.Module):
                raise DomainError(
                    f"ProcessModel: {name} must be a fitted BoTorch transform or None, got a {type(transform).__name__}"
                )
        frozen = process
        if isinstance(process, EmpiricalProcess):
            frozen = process.thin(num_draws) if process.num_draws > num_draws else process
        elif isinstance(process, ParametricProcess):
            frozen = process.draws(num_draws)
        salt = _state.digest(frozen.theta) if isinstance(frozen, EmpiricalProcess) else 0
        self._set(frozen, process, input_transform, outcome_transform, _state.batch_shape(frozen), salt, None)

    def _set(
        self,
        process: StochasticProcess,
        source: StochasticProcess,
        input_transform: InputTransform | None,
        outcome_transform: OutcomeTransform | None,
        batch_shape: torch.Size,
        salt: int,
        outputs: tuple[int, ...] | None,
    ) -> None:
        super().__init__()
        self.process, self.source = process, source
        # BoTorch asks whether the attributes exist, so they do not where there is no transform.
        if input_transform is not None:
            self.input_transform = input_transform
        if outcome_transform is not None:
            self.outcome_transform = outcome_transform
        self._batch_shape, self._salt, self._outputs = batch_shape, salt, outputs
        self._collapse_reported = False
        self.eval()

    def _copy(self, process: StochasticProcess | None = None, **changes: Any) -> ProcessModel:
        """The model around another process or other outputs, sharing the draws."""
        new = type(self).__new__(type(self))
        # Transforms are modules: shared ones would move with either model.
        transforms = {k: copy.deepcopy(getattr(self, k, None)) for k in ("input_transform", "outcome_transform")}
        kept = {"batch_shape": self._batch_shape, "salt": self._salt, "outputs": self._outputs, **transforms}
        new._set(self.process if process is None else process, self.source, **{**kept, **changes})
        new._collapse_reported = self._collapse_reported
        return new

    @property
    def num_outputs(self) -> int:
        """Number of outcomes m of the posterior."""
        return self.process.num_predictions if self._outputs is None else len(self._outputs)

    @property
    def batch_shape(self) -> torch.Size:
        """Batch shape of the model: that of the data it was conditioned on. Draws are no part of it."""
        return self._batch_shape

    def posterior(
        self,
        X: Tensor,
        output_indices: Sequence[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,
    ) -> Posterior:
        """The posterior at X, in the units of the data.

        Args:
            X: Points ``... x q x d``.
            output_indices: Outcomes wanted; None: all.
            observation_noise: True adds the noise of the likelihood; a tensor ``... x (1 or q) x m`` adds noise of
                these variances, which are in transformed units, as everywhere in BoTorch.
            posterior_transform: Applied at the end; transforms of draws act draw by draw.

        Returns:
            A posterior over ``... x q x m``: a `DrawsPosterior` for draws, else what the process predicts.

        Raises:
            ShapeError, DomainError, NonFiniteError: X does not fit; the message says how.
        """
        inside = self._transformed("posterior", X)
        given = isinstance(observation_noise, Tensor)
        if not isinstance(observation_noise, (bool, Tensor)):
            raise DomainError(
                f"ProcessModel.posterior: observation_noise must be a bool or a tensor, got {observation_noise!r}"
            )
        posterior = self.process.predict(inside, observation_noise=not given and bool(observation_noise))
        inner = posterior.posterior if isinstance(posterior, MarginalPosterior) else posterior
        if isinstance(inner, DrawsPosterior):
            inner.salt = self._salt
        if given:
            validation.tensor("ProcessModel.posterior", "observation_noise", observation_noise, like=X)
            posterior = _posteriors.with_noise(posterior, observation_noise)
        if hasattr(self, "outcome_transform"):
            posterior = _posteriors.untransform(posterior, self.outcome_transform, inside)
        if self._outputs is not None:
            posterior = _posteriors.select(posterior, self._outputs)
        if output_indices is not None:
            posterior = _posteriors.select(posterior, output_indices)
        if posterior_transform is not None:
            posterior = _posteriors.apply_transform(posterior, posterior_transform, X)
        return posterior

    def condition_on_observations(self, X: Tensor, Y: Tensor, noise: Tensor | None = None) -> ProcessModel:
        """The model knowing more, through its process' `condition`; transforms are not fitted again.

        Args:
            X: Points ``... x n x d``.
            Y: Outcomes ``... x n x m`` in the units of the data; leading dimensions broadcast with those of X.
            noise: Known noise variances like Y, in transformed units, as everywhere in BoTorch.

        Returns:
            A new model, whose `batch_shape` has the leading dimensions. For draws, `model.process.ess` is the
            effective number that still counts, and a `DegenerateWeightsWarning` says when it is small.

        Raises:
            UnsupportedError: The process can only be fitted again, or the model is a subset of the outcomes.
        """
        where = "ProcessModel.condition_on_observations"
        if self._outputs is not None:
            raise UnsupportedError(
                f"{where}: the model shows outcomes {list(self._outputs)} of {self.process.num_predictions} only; "
                "condition the whole model on all outcomes, then take subset_output"
            )
        inside = self._transformed("condition_on_observations", X)
        validation.outcomes(where, "Y", Y, X, self.process.num_outcomes)
        if noise is not None:
            validation.variances(where, noise, X, self.process.num_outcomes, name="noise")
        if hasattr(self, "outcome_transform"):
            Y, _ = self.outcome_transform(Y, X=inside)
        process = self.process.condition(inside, Y, noise_variance=noise)
        batch = torch.broadcast_shapes(self._batch_shape, X.shape[:-2], Y.shape[:-2])
        return self._copy(process, batch_shape=batch)

    def fantasize(
        self, X: Tensor, sampler: MCSampler, observation_noise: Tensor | None = None, *, propagate_grads: bool = True
    ) -> ProcessModel:
        """The model conditioned on outcomes imagined at X; differentiable in X.

        Outcomes are drawn from the posterior with observation noise (Student-t noise as such). A subset of the outcomes
        imagines all of them, because a real evaluation brings them all.

        Args:
            X: Points ``... x n x d``.
            sampler: Draws the fantasies; of shape ``(f,)``, say.
            observation_noise: Noise variances ``... x (1 or n) x m`` in transformed units; None: the likelihood's.
            propagate_grads: For BoTorch's callers; gradients always propagate.

        Returns:
            A model of batch shape ``f x ...``. Where few draws support some fantasy, a `DegenerateWeightsWarning`
            says so once a model, not at every evaluation of an acquisition function.

        Raises:
            DomainError, ShapeError: An argument does not fit; the message says how.
            UnsupportedError: The likelihood is not of real outcomes, or the process cannot be conditioned.
        """
        where = "ProcessModel.fantasize"
        self._transformed("fantasize", X)  # refuses what does not fit, in the words of this method
        if not isinstance(sampler, MCSampler):
            raise DomainError(f"{where}: sampler must be a botorch MCSampler, got a {type(sampler).__name__}")
        if observation_noise is not None and not isinstance(observation_noise, Tensor):
            raise DomainError(f"{where}: observation_noise must be a tensor or None, got {observation_noise!r}")
        whole = self if self._outputs is None else self._copy(outputs=None)
        with fantasize_flag(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateWeightsWarning)
            Y = whole._imagine(where, X, sampler, True if observation_noise is None else observation_noise)
            one = Y.shape[len(sampler.sample_shape) :]
            noise = None if observation_noise is None else observation_noise.expand(one)
            fantasy = whole.condition_on_observations(X, Y, noise)
        self._report_collapse(where, fantasy)
        fantasy._outputs = self._outputs
        return fantasy

    def _imagine(self, where: str, X: Tensor, sampler: MCSampler, noise: bool | Tensor) -> Tensor:
        m = self.process.num_outcomes
        if torch.is_tensor(X) and X.ndim > 1 and X.shape[-2] == 0:
            batch = torch.broadcast_shapes(self._batch_shape, X.shape[:-2])
            return X.new_empty(*sampler.sample_shape, *batch, 0, m)
        if noise is True and is_student_t(self.process):
            inside = self._transformed("fantasize", X)
            Y = imagined(self.process, inside, sampler, self._salt)
            return self.outcome_transform.untransform(Y, X=inside)[0] if hasattr(self, "outcome_transform") else Y
        Y = sampler(self.posterior(X, observation_noise=noise))
        try:
            if Y.shape[-1] != m:
                raise DomainError("an outcome is a class, a prediction its probabilities")
            if self.process.likelihood is not None and not hasattr(self, "outcome_transform"):
                self.process.likelihood.check_outcomes(where, Y)
        except DomainError as error:
            raise UnsupportedError(
                f"{where}: outcomes are imagined by adding noise to real values, which a "
                f"{type(self.process.likelihood).__name__} likelihood does not have; use condition_on_observations"
            ) from error
        return Y

    def _report_collapse(self, where: str, fantasy: ProcessModel) -> None:
        process = fantasy.process
        if self._collapse_reported or not isinstance(process, EmpiricalProcess) or process.weights.numel() == 0:
            return
        smallest = process.ess.min().item()
        if smallest < min(MIN_ESS, process.num_draws):
            self._collapse_reported = fantasy._collapse_reported = True
            warnings.warn(
                f"{where}: a fantasy rests on {smallest:.1f} of {process.num_draws} draws (effective sample size), so "
                "lookahead values are too high; keep more draws (num_draws=). This is said once a model",
                DegenerateWeightsWarning,
                stacklevel=user_level(),
            )

    def subset_output(self, idcs: Sequence[int]) -> ProcessModel:
        """The model of the outcomes `idcs`, with the same draws in the same order."""
        now = range(self.num_outputs) if self._outputs is None else self._outputs
        return self._copy(outputs=tuple(now[i] for i in _posteriors.checked(idcs, self.num_outputs)))

    @classmethod
    def construct_inputs(
        cls,
        training_data: SupervisedDataset,
        *,
        surrogate: str = "bnn-hmc",
        bounds: Tensor | None = None,
        seed: int = 0,
        init: ProcessModel | StochasticProcess | None = None,
    ) -> dict[str, Any]:
        """Fit a surrogate and return the keyword arguments that make it: ``ProcessModel(**inputs)``.

        Args:
            training_data: BoTorch's data set.
            surrogate: A name of :func:`available_surrogates`.
            bounds: The box of the inputs, ``2 x d``; None: the range of the data.
            seed: Seed of the fit.
            init: A previous model, as a warm start.

        Returns:
            The process and the transforms, by the names of the constructor.

        Raises:
            DomainError: The data are no data set, or there is no such surrogate.
        """
        from .recipe import get_surrogate

        if not isinstance(training_data, SupervisedDataset):
            raise DomainError(
                f"ProcessModel.construct_inputs: training_data must be a botorch SupervisedDataset, "
                f"got a {type(training_data).__name__}"
            )
        data, recipe = training_data, get_surrogate(surrogate)
        model = recipe.fit(data.X, data.Y, data.Yvar, bounds=bounds, seed=seed, init=init)
        transforms = {name: getattr(model, name, None) for name in ("input_transform", "outcome_transform")}
        return {"process": model.source, "num_draws": recipe.num_draws, **transforms}

    def _transformed(self, verb: str, X: Tensor) -> Tensor:
        """Check X before a transform can cast, broadcast or refuse it in its own words, and transform it."""
        self.eval()
        where, process = f"ProcessModel.{verb}", self.process
        transform = getattr(self, "input_transform", None)
        d = process.input_dim if transform is None else getattr(transform, "_d", None)
        if d is not None:
            validation.inputs(where, X, d, like=process)
        else:
            validation.tensor(where, "X", X, like=process)
            if X.ndim < 2:
                raise ShapeError(f"{where}: X must have shape (..., n, d), got {tuple(X.shape)}")
        return X if transform is None else transform(X)

    # Training inputs are not kept, so there is nothing for BoTorch's eval() and train() to swap.
    def _set_transformed_inputs(self) -> None: ...

    def _revert_to_original_inputs(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name in ("train_inputs", "train_targets"):
            _posteriors.refuse_attribute(f"ProcessModel: keeps no {name}")
        if name == "likelihood":
            _posteriors.refuse_attribute("ProcessModel: has no gpytorch likelihood (see model.process.likelihood)")
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ProcessModel:
        super()._apply(fn, recurse)
        like = fn(torch.empty(0, dtype=self.process.dtype, device=self.process.device))
        same = self.source is self.process
        self.process = self.process.to(device=like.device, dtype=like.dtype)
        self.source = self.process if same else self.source.to(device=like.device, dtype=like.dtype)
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """The tensors of the process, for `state_dict`."""
        tensors = _state.tensors_of(self.process, self.source)
        return {"tensors": tensors, "salt": self._salt, "batch_shape": tuple(self._batch_shape)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the tensors of a model of the same make, from `load_state_dict`."""
        found = state["tensors"]
        process = source = _state.with_tensors(self.process, found, "process")
        if any(name.startswith("source") for name in found):
            source = _state.with_tensors(self.source, found, "source")
        taken = _state.tensors_of(process, source)
        if set(taken) != set(found):
            odd = sorted(set(taken) ^ set(found))
            raise DomainError(f"ProcessModel.load_state_dict: the state is of another model; it differs in {odd}")
        self.process, self.source = process, source
        self._salt, self._batch_shape = state["salt"], torch.Size(state["batch_shape"])

    def _config(self) -> dict[str, Any]:
        return {
            "process": self.process,
            "source": None if self.source is self.process else self.source,
            "input_transform": _state.encode_transform("input_transform", getattr(self, "input_transform", None)),
            "outcome_transform": _state.encode_transform("outcome_transform", getattr(self, "outcome_transform", None)),
            "batch_shape": tuple(self._batch_shape),
            "salt": self._salt,
            "outputs": self._outputs,
        }

    @classmethod
    def _from_config(cls, config: dict[str, Any], **context: Any) -> ProcessModel:
        model = cls.__new__(cls)
        model._set(
            config["process"],
            config["process"] if config["source"] is None else config["source"],
            _state.decode_transform(config["input_transform"]),
            _state.decode_transform(config["outcome_transform"]),
            torch.Size(config["batch_shape"]),
            config["salt"],
            config["outputs"],
        )
        return model
