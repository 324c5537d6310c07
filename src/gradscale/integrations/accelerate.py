"""Hugging Face Accelerate: its scaler, its skip flag, and clipping on a CPU."""
# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownParameterType=false

from __future__ import annotations

from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import convert_outputs_to_fp32

from gradscale.integrations.attachment import Attachment
from gradscale.integrations.wanted import WantedScaler
from gradscale.outcomes.outcome import OptimizerOutcome
from gradscale.scaler import GradScaler


class HeardOptimizer(AcceleratedOptimizer):
    """An `AcceleratedOptimizer` that asks the scaler whether a step was skipped.

    Accelerate's own takes a call of `optimizer.step` for a step: a fused optimizer is called to
    skip on the device, and so is any with ``sync_free`` (accelerate#4242).
    """

    _outcome: OptimizerOutcome | None = None

    def step(self, closure: Any = None) -> None:
        """Steps by the scaler, and keeps its outcome; nobody waits for it before it is read."""
        if self._only_makes_its_state:
            self.optimizer.step(closure)
            return
        super().step(closure)
        if self.gradient_state.sync_gradients:
            last = self.scaler.last_step
            self._outcome = last[self.optimizer] if self.optimizer in last else None

    @property
    def _only_makes_its_state(self) -> bool:
        # A checkpoint of a sharded optimizer has torch take a step without a loss, at a rate of 0.
        # To the scaler that would be one of training, and raise its counters.
        rates = [group.get("lr") for group in self.param_groups]
        return not self.scaler._step.evidence.losses and not any(rates)

    @property
    def step_was_skipped(self) -> bool:
        """Whether the optimizer did not step; of a fused one, waits for the device."""
        return self._outcome is not None and self._outcome.skipped

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_outcome", None)
        return state


def attach_accelerator(accelerator: Any, wanted: WantedScaler) -> Attachment:
    """Puts a scaler into an `Accelerator`, before or after `prepare`.

    Raises:
        RuntimeError: if one of ours is there already.
        ValueError: if it does not train in fp16, or leaves that to an engine.
    """
    _check(accelerator)
    attachment = Attachment(accelerator, wanted.build(accelerator.device.type))
    attachment.put(accelerator, "scaler", attachment.scaler)
    _turn_on(accelerator, attachment)
    for optimizer in accelerator._optimizers:
        _adopt(optimizer, attachment)
    prepare = accelerator.prepare_optimizer

    def prepare_optimizer(*args: Any, **kwargs: Any) -> Any:
        prepared = prepare(*args, **kwargs)
        _adopt(prepared, attachment)
        return prepared

    attachment.put(accelerator, "prepare_optimizer", prepare_optimizer, say="")
    attachment.say(f"{_counted(len(accelerator._optimizers))}")
    return attachment


def _counted(prepared: int) -> str:
    return f"{prepared} prepared optimizer{'' if prepared == 1 else 's'}"


def _check(accelerator: Any) -> None:
    engine = str(getattr(accelerator.distributed_type, "value", ""))
    if engine in ("DEEPSPEED", "MEGATRON_LM"):
        raise ValueError(
            f"`attach(accelerator)`: {engine} scales the loss itself, and the accelerator has no "
            "part in it. Attach to the engine that `accelerator.prepare(model, …)` returns."
        )
    if accelerator.mixed_precision != "fp16":
        raise ValueError(
            f"`attach(accelerator)`: it trains with mixed_precision="
            f"{accelerator.mixed_precision!r}, which has float32's range and needs no loss "
            "scale. Make it with `Accelerator(mixed_precision='fp16')`."
        )
    if isinstance(accelerator.scaler, GradScaler):
        raise RuntimeError(
            "`attach(accelerator)`: there is a `gradscale.GradScaler` in it already. Call "
            "`detach()` of that attachment first."
        )


def _turn_on(accelerator: Any, attachment: Attachment) -> None:
    """Has fp16 mean fp16 on a CPU, where Accelerate leaves it out without a word.

    Its `unscale_gradients`, and so its clipping, ask for `native_amp`, too.
    """
    if accelerator.native_amp:
        return
    attachment.put(accelerator, "native_amp", True, say="native_amp (fp16 autocast and clipping)")
    for model in accelerator._models:
        forward = accelerator.autocast()(model.forward)
        attachment.put(model, "forward", convert_outputs_to_fp32(forward), say="")


def _adopt(optimizer: Any, attachment: Attachment) -> None:
    """Makes a prepared optimizer step by the scaler, and tell what became of the step."""
    if type(optimizer) is not AcceleratedOptimizer:
        return
    before = optimizer.scaler
    optimizer.__class__ = HeardOptimizer
    # What Accelerate sets up for an optimizer that is made with a scaler.
    optimizer.__setstate__({"scaler": attachment.scaler})

    def put_back() -> None:
        optimizer.__dict__.pop("_outcome", None)
        optimizer.__class__ = AcceleratedOptimizer
        optimizer.__setstate__({"scaler": before})

    attachment.undone_by(put_back)
