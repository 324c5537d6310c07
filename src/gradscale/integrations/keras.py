"""Keras 3 on torch: our scaler behind its optimizer wrapper."""
# pyright: reportUntypedBaseClass=false

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from gradscale.checkpoints import import_state
from gradscale.integrations.attachment import Attachment
from gradscale.integrations.slots import without_half
from gradscale.integrations.wanted import WantedScaler, device_of
from gradscale.scaler import GradScaler

# By its name, because this file has the same one, and a type checker would take it for Keras.
_keras: Any = importlib.import_module("keras")
_LossScaleOptimizer: Any = _keras.optimizers.LossScaleOptimizer


class KerasVariable(Protocol):
    """A weight: on torch its `value` is a parameter."""

    @property
    def value(self) -> Tensor:
        """That parameter."""
        ...


class KerasOptimizer(Protocol):
    """What is asked of a Keras optimizer."""

    def apply(self, grads: Sequence[Tensor | None], trainable_variables: object = None) -> None:
        """Steps."""
        ...


class KerasModel(Protocol):
    """What is asked of a compiled Keras model."""

    optimizer: KerasOptimizer
    dtype_policy: object


class InnerStep:
    """A Keras optimizer as a scaler sees one: parameters with gradients, and a step."""

    def __init__(self, inner: KerasOptimizer) -> None:
        self._inner = inner
        self._variables: Sequence[KerasVariable] = ()
        self.param_groups: list[dict[str, list[Tensor]]] = [{"params": []}]
        self.state: dict[Tensor, object] = {}
        self.defaults: dict[str, object] = {}

    def show(self, gradients: Sequence[Tensor | None], variables: Sequence[KerasVariable]) -> None:
        """What the next step is about."""
        self._variables = variables
        self.param_groups[0]["params"] = [variable.value for variable in variables]
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.value.grad = gradient

    def step(self) -> None:
        """Steps on the gradients as the scaler has left them."""
        self._inner.apply([it.value.grad for it in self._variables], self._variables)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears them, as `GradScaler.abandon` asks."""
        for variable in self._variables:
            variable.value.grad = None


class ScaledOptimizer(_LossScaleOptimizer):
    """A `LossScaleOptimizer` that leaves scaling to a `gradscale.GradScaler`.

        model.compile(optimizer=ScaledOptimizer(keras.optimizers.Adam(), layerwise=True), …)

    Its `dynamic_scale` and `step_counter` follow the scaler, so that Keras saves them with the
    model; they are read again when it loads.

    Args:
        inner_optimizer: the optimizer that steps.
        scaler: one that is there already; None makes one.
        name: of the optimizer, for Keras.
        scaler_arguments: of `GradScaler`.

    Raises:
        RuntimeError: if Keras does not run on torch.
    """

    def __init__(
        self,
        inner_optimizer: KerasOptimizer,
        scaler: GradScaler | None = None,
        name: str | None = None,
        **scaler_arguments: object,
    ) -> None:
        if _keras.backend.backend() != "torch":
            raise RuntimeError(
                f"`ScaledOptimizer(…)`: Keras runs on {_keras.backend.backend()}. Set "
                "`KERAS_BACKEND=torch` before Keras is imported."
            )
        built = WantedScaler(scaler, scaler_arguments).build(device_of(None))
        super().__init__(inner_optimizer, initial_scale=built.get_scale(), name=name)
        self.scaler = built
        self._step_of_inner = InnerStep(inner_optimizer)

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss times the scale; a plan takes effect in its backward pass."""
        return self.scaler.scale(loss)

    def apply(
        self,
        grads: Sequence[Tensor | None],
        trainable_variables: Sequence[KerasVariable] | None = None,
    ) -> None:
        """Divides and checks the gradients, then has the inner optimizer step, or skips."""
        if not self.built:
            with _keras.src.backend.name_scope(self.name, caller=self):
                self.build(trainable_variables)
            self.built = True
        variables = (
            self._trainable_variables if trainable_variables is None else trainable_variables
        )
        self._step_of_inner.show(grads, variables)
        self.scaler.step(self._step_of_inner)  # pyright: ignore[reportArgumentType]
        self.scaler.update()
        self.dynamic_scale.assign(self.scaler._held.ready("apply"))
        self.step_counter.assign(self.scaler._get_growth_tracker())

    def load_own_variables(self, store: Mapping[str, object]) -> None:
        """Reads what Keras has saved, and has the scaler go on there."""
        super().load_own_variables(store)
        self.go_on_from(self)

    def go_on_from(self, optimizer: Any) -> None:
        """Takes over scale and counter of a `LossScaleOptimizer`, Keras' own or ours.

        Args:
            optimizer: has its variables.
        """
        saved = {
            "dynamic_scale": float(optimizer.dynamic_scale),
            "step_counter": int(optimizer.step_counter),
        }
        self.scaler.load_state_dict(import_state(saved, "keras"))


def attach_model(model: KerasModel, wanted: WantedScaler) -> Attachment:
    """Wraps the optimizer of a compiled Keras model; before `fit`.

    Raises:
        ValueError: if the model does not compute in float16.
        RuntimeError: if it was not compiled.
    """
    policy = str(getattr(model.dtype_policy, "name", model.dtype_policy))
    if policy != "mixed_float16":
        half = "`keras.config.set_dtype_policy('mixed_float16')`, before its layers are made"
        raise ValueError(without_half(type(model).__name__, half))
    before: KerasOptimizer | None = getattr(model, "optimizer", None)
    if before is None:
        raise RuntimeError(
            f"`attach({type(model).__name__})`: it has no optimizer yet. Call `model.compile(…)` "
            "first."
        )
    wrapped = ScaledOptimizer(
        getattr(before, "inner_optimizer", before), wanted.build(device_of(None))
    )
    if getattr(before, "built", False) and hasattr(before, "dynamic_scale"):
        wrapped.go_on_from(before)  # as a model does that was loaded
    attachment = Attachment(model, wrapped.scaler)
    attachment.put(model, "optimizer", wrapped)
    return attachment
