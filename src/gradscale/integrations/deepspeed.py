"""DeepSpeed, ZeRO 0 to 3: one loss scaler for its fp16 mode and for torch's autocast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from gradscale.integrations.attachment import Attachment
from gradscale.integrations.slots import without_half
from gradscale.integrations.told import ToldScaler
from gradscale.integrations.wanted import WantedScaler, device_of
from gradscale.layerwise.function_verdicts import FunctionVerdicts
from gradscale.scaler import GradScaler


class ZeroOptimizer(Protocol):
    """What ZeRO's optimizers of stages 1 to 3 have in common."""

    loss_scaler: object
    torch_autocast_gradscaler: object | None

    def load_state_dict(self, *arguments: object, **settings: object) -> object:
        """Takes over a saved state, the loss scaler in it as well."""
        ...


class Engine(Protocol):
    """What is asked of a `DeepSpeedEngine`."""

    optimizer: ZeroOptimizer
    device: object
    torch_autocast_z0_gradscaler: object | None

    def fp16_enabled(self) -> bool:
        """Whether the model is in float16."""
        ...

    def zero_optimization_stage(self) -> int:
        """0 to 3."""
        ...

    def save_checkpoint(
        self,
        save_dir: str,
        tag: str | None,
        client_state: dict[str, object],
        /,
        **settings: object,
    ) -> object:
        """Writes a folder, with what the client adds."""
        ...

    def load_checkpoint(
        self, *arguments: object, **settings: object
    ) -> tuple[object, dict[str, dict[str, object]] | None]:
        """Reads it; returns what the client had added."""
        ...


class SavedLossScaler:
    """What of ours is pickled into a DeepSpeed checkpoint: plain values."""

    state: dict[str, object]

    def __init__(self, state: dict[str, object]) -> None:
        self.state = state


class ZeroLossScaler:
    """Stands where ZeRO's optimizers keep their `loss_scaler`.

    A new scale is in force from the next loss on: ZeRO asks for the scale once more after it has
    said that a step was clean, and divides by what it hears then. Its own scaler has grown by that
    time, so that every growth halves a step.

    Args:
        told: the scaler.
    """

    dynamic = True

    def __init__(self, told: ToldScaler) -> None:
        self._told = told
        self._in_force = float(told.scale)

    @property
    def cur_scale(self) -> float:
        """The scale of the gradients that are there."""
        return self._in_force

    @cur_scale.setter
    def cur_scale(self, scale: float) -> None:
        self._told.scaler.update(scale)
        self._in_force = scale

    @property
    def loss_scale(self) -> float:
        """The same."""
        return self._in_force

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss times the scale; a plan takes effect in its backward pass."""
        scaled: Tensor = self._told.scaler.scale(loss)
        self._in_force = float(self._told.scale)
        return scaled

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        """Runs the backward pass of the scaled loss."""
        self.scale_loss(loss).backward(retain_graph=retain_graph)

    def update_scale(self, overflow: bool) -> None:
        """Ends a step."""
        self._told.tell(bool(overflow))

    def take_over(self, loaded: object) -> None:
        """Goes on where a checkpoint was saved, by ours or by DeepSpeed's dynamic scaler."""
        if isinstance(loaded, SavedLossScaler):
            self._told.take_over(loaded.state)
        elif getattr(loaded, "dynamic", False):  # a static one of 1 is what autocast has
            self._told.take_over(vars(loaded), "deepspeed")
        self._in_force = float(self._told.scale)

    def __reduce__(self) -> tuple[type[SavedLossScaler], tuple[dict[str, object]]]:
        return SavedLossScaler, (self._told.scaler.state_dict(),)


def attach_engine(engine: Engine, wanted: WantedScaler) -> Attachment:
    """Puts a scaler into a DeepSpeed engine.

    Raises:
        ValueError: if it does not train in float16; in fp16 mode without ZeRO, whose optimizers
            have no place for a scaler; for a policy that has to see the gradients.
    """
    device = device_of(engine)
    optimizer = engine.optimizer
    if engine.torch_autocast_z0_gradscaler is not None:
        return _attach_to_autocast(engine, wanted.build(device))
    autocast = getattr(optimizer, "torch_autocast_gradscaler", None) is not None
    if not autocast and not engine.fp16_enabled():
        half = "`'fp16': {'enabled': true}` or `'torch_autocast': {'dtype': 'float16', …}`"
        raise ValueError(without_half(type(engine).__name__, half))
    if engine.zero_optimization_stage() == 0:
        raise ValueError(
            f"`attach({type(engine).__name__})`: DeepSpeed's fp16 optimizers without ZeRO keep the "
            "scale in a variable of their own. Set `'zero_optimization': {'stage': 1}`, which "
            "computes the same, or `'torch_autocast'` in place of `'fp16'`."
        )
    return _attach_to_zero(engine, wanted.build(device), device)


def _attach_to_zero(engine: Engine, scaler: GradScaler, device: str) -> Attachment:
    optimizer, attachment = engine.optimizer, Attachment(engine, scaler)
    ours = ZeroLossScaler(ToldScaler(scaler, device, "DeepSpeed"))
    stage = engine.zero_optimization_stage()
    if stage == 3:
        _leave_functions_alone(scaler)
    attachment.put(optimizer, "loss_scaler", ours, say=f"loss_scaler of ZeRO {stage}")
    # ZeRO divides and clips by the loss scaler's number. For torch's scaler that number is 1, so it
    # clips gradients that are still scaled, and calls no `update` after an overflow.
    attachment.put(optimizer, "torch_autocast_gradscaler", None, say="")
    attachment.put(optimizer, "dynamic_loss_scale", True, say="")
    if not getattr(optimizer, "compute_grad_norm", True):  # by which autocast finds overflows
        attachment.put(optimizer, "check_grad_overflow", True, say="")
    load = optimizer.load_state_dict

    def load_state_dict(*arguments: object, **settings: object) -> object:
        result = load(*arguments, **settings)
        if optimizer.loss_scaler is not ours:
            ours.take_over(optimizer.loss_scaler)
            optimizer.loss_scaler = ours
        return result

    attachment.put(optimizer, "load_state_dict", load_state_dict, say="")
    return attachment


def _leave_functions_alone(scaler: GradScaler) -> None:
    """ZeRO 3 gathers weights in backward functions of its own: to call one twice breaks its order.

    A scaler probes the functions that torch did not write; under a plan it must.

    Raises:
        ValueError: for ``layerwise``.
    """
    if scaler.layerwise is not None:
        raise ValueError(
            "`attach(DeepSpeedEngine, layerwise=…)` with ZeRO 3: it gathers weights inside the "
            "backward pass, in functions that a plan would have to try out, which moves weights "
            "between ranks. Set `'zero_optimization': {'stage': 2}`, or leave `layerwise` out."
        )
    held = scaler._held
    held.functions = FunctionVerdicts("ignore", held.functions.naming)


def _attach_to_autocast(engine: Engine, scaler: GradScaler) -> Attachment:
    """Without ZeRO the engine calls a scaler as a loop of one's own does."""
    attachment = Attachment(engine, scaler)
    attachment.put(engine, "torch_autocast_z0_gradscaler", scaler)
    # By this attribute the engine counts skipped steps and holds the schedule; torch's optimizers
    # have none, so it moves on.
    attachment.put(engine.optimizer, "overflow", False, say="skipped steps")
    update: Callable[[], None] = scaler.update

    def update_and_tell() -> None:
        update()
        engine.optimizer.__dict__["overflow"] = scaler.last_step.skipped

    attachment.put(scaler, "update", update_and_tell, say="")
    save, load = engine.save_checkpoint, engine.load_checkpoint

    # Of its own scaler the engine saves nothing; what a client adds it saves.
    def save_checkpoint(
        folder: str,
        tag: str | None = None,
        client_state: Mapping[str, object] | None = None,
        **settings: object,
    ) -> object:
        state = {**(client_state or {}), "gradscale": scaler.state_dict()}
        return save(folder, tag, state, **settings)

    def load_checkpoint(
        *arguments: object, **settings: object
    ) -> tuple[object, dict[str, dict[str, object]] | None]:
        path, state = load(*arguments, **settings)
        if state and "gradscale" in state:
            scaler.load_state_dict(state["gradscale"])
        return path, state

    attachment.put(engine, "save_checkpoint", save_checkpoint, say="checkpoint")
    attachment.put(engine, "load_checkpoint", load_checkpoint, say="")
    attachment.undone_by(lambda: engine.optimizer.__dict__.pop("overflow", None))
    return attachment
