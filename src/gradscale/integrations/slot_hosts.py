"""Hosts with a slot for a scaler, and with something beside it that has to be put right."""

from __future__ import annotations

import importlib
from collections.abc import Callable, MutableMapping
from typing import Protocol

from gradscale.integrations.attachment import Attachment
from gradscale.integrations.slots import attach_slots, without_half
from gradscale.integrations.wanted import WantedScaler, device_of
from gradscale.scaler import GradScaler


class Handle(Protocol):
    """What an event handler is taken away with."""

    def remove(self) -> object:
        """Takes it away."""
        ...


class MonaiTrainer(Protocol):
    """MONAI's trainers are Ignite engines that make their scaler as they begin to run."""

    amp: bool

    def add_event_handler(self, event: object, handler: Callable[[object], object]) -> Handle:
        """Calls `handler` with the engine at each such event."""
        ...


class Average(Protocol):
    """A moving average of the weights."""

    def update(self, model: object) -> object:
        """Takes the weights of this step in."""
        ...


class UltralyticsTrainer(Protocol):
    """Ultralytics' trainers make scaler and average as they begin to train."""

    scaler: object
    ema: Average | None

    def add_callback(self, event: str, callback: Callable[[object], object]) -> object:
        """Calls `callback` with the trainer at each such event."""
        ...

    def _load_checkpoint_state(self, ckpt: object) -> object: ...


class SpeechBrainCheckpointer(Protocol):
    """What saves a Brain."""

    recoverables: MutableMapping[str, object]


class NerfOptimizers(Protocol):
    """Nerfstudio's optimizers and their schedules."""

    def scheduler_step_all(self, step: int) -> None:
        """Moves every schedule."""
        ...


def attach_monai(trainer: MonaiTrainer, wanted: WantedScaler) -> Attachment:
    """Puts a scaler into a MONAI trainer at each start of `run`, which makes one of torch's.

    Raises:
        ValueError: if it does not train with ``amp=True``.
    """
    if not trainer.amp:
        raise ValueError(without_half(type(trainer).__name__, "`amp=True`"))
    attachment = Attachment(trainer, wanted.build(device_of(trainer)))
    attachment.put(trainer, "scaler", attachment.scaler, say="scaler, at each start of `run`")

    def at_start(engine: object) -> None:
        attachment.host.scaler = attachment.scaler

    events = importlib.import_module("ignite.engine").Events
    handle = trainer.add_event_handler(events.STARTED, at_start)
    attachment.undone_by(handle.remove)
    return attachment


def refuse_ignite(engine: object, wanted: WantedScaler) -> Attachment:
    """Ignite keeps the scaler where nobody can reach it, and has an argument for one.

    Raises:
        TypeError: in any case.
    """
    raise TypeError(
        f"`attach({type(engine).__name__})`: Ignite's training step took its scaler in as it was "
        "made. Give it ours there: `create_supervised_trainer(…, amp_mode='amp', "
        "scaler=gradscale.GradScaler(device))`."
    )


def attach_mmengine(host: object, wanted: WantedScaler) -> Attachment:
    """Puts a scaler into an `AmpOptimWrapper`, or that of a `Runner` that has built it.

    Raises:
        ValueError: if it has none.
    """
    attachment = attach_slots(host, wanted)
    wrapper = getattr(host, "optim_wrapper", host)
    # With `loss_scale=512.` it hands that number to every `update`: no policy would be asked.
    attachment.put(wrapper, "_scale_update_param", None, say="")
    return attachment


def attach_ultralytics(trainer: UltralyticsTrainer, wanted: WantedScaler) -> Attachment:
    """Puts a scaler into an Ultralytics trainer once it has made its own; before `train`.

    Its moving average of the weights takes in no step that was skipped.
    """
    attachment = Attachment(trainer, wanted.build(device_of(trainer)))
    attachment.say("scaler and EMA, at the start of `train`")
    load = trainer._load_checkpoint_state

    def load_checkpoint_state(ckpt: object) -> object:
        trainer.scaler = attachment.scaler  # else torch's would load what ours has saved
        return load(ckpt)

    def at_start(_: object) -> None:
        if not attachment.attached:  # Ultralytics has no way to take a callback away
            return
        attachment.put(trainer, "scaler", attachment.scaler, say="")
        if trainer.ema is not None:
            held = held_update(trainer.ema, attachment.scaler)
            attachment.put(trainer.ema, "update", held, say="")

    attachment.put(trainer, "_load_checkpoint_state", load_checkpoint_state, say="")
    trainer.add_callback("on_pretrain_routine_end", at_start)
    return attachment


def held_update(average: Average, scaler: GradScaler) -> Callable[[object], object]:
    """An average's `update` that leaves out steps that were skipped."""
    update = average.update

    def update_if_taken(model: object) -> object:
        return None if scaler.last_step.skipped else update(model)

    return update_if_taken


def attach_speechbrain(brain: object, wanted: WantedScaler) -> Attachment:
    """Puts a scaler into a `Brain`, and into what its checkpointer saves."""
    attachment = attach_slots(brain, wanted)
    checkpointer: SpeechBrainCheckpointer | None = getattr(brain, "checkpointer", None)
    if checkpointer is not None:
        recoverables = checkpointer.recoverables
        before = recoverables.get("scaler")
        recoverables["scaler"] = attachment.scaler
        attachment.say("checkpointer")

        def put_back() -> None:
            if before is None:
                recoverables.pop("scaler", None)
            else:
                recoverables["scaler"] = before

        attachment.undone_by(put_back)
    return attachment


def attach_nerfstudio(trainer: object, wanted: WantedScaler) -> Attachment:
    """Puts a scaler into a nerfstudio `Trainer` after its `setup`, and holds schedules on skips.

    The host takes a scale that fell for a step that was skipped; ours stays where it is if the data
    were bad.

    Raises:
        RuntimeError: if `setup` has not run.
    """
    optimizers: NerfOptimizers | None = getattr(trainer, "optimizers", None)
    if optimizers is None:
        raise RuntimeError(
            f"`attach({type(trainer).__name__})` before `setup()`: its optimizers are not there "
            "yet. Call `trainer.setup()` first."
        )
    attachment = attach_slots(trainer, wanted)
    step_all, scaler = optimizers.scheduler_step_all, attachment.scaler

    def step_if_taken(step: int) -> None:
        if not scaler.last_step.skipped:
            step_all(step)

    attachment.put(optimizers, "scheduler_step_all", step_if_taken, say="schedules wait on skips")
    return attachment
