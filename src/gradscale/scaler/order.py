"""Which call is allowed where an optimizer's gradients are, and what is said where it is not."""

from __future__ import annotations

from typing import Literal

from gradscale.scaler.record import At, Record

Call = Literal["unscale_", "step", "step a closure", "clip", "accumulate_", "update"]

_MIXED = (
    "`{name}(optimizer)`: backward() has added to gradients that `unscale_` or clipping "
    "had divided already, so they are at no scale. Call them after the last backward() of "
    "a step; to give up the step that was begun, call `scaler.abandon()`."
)
_UNSCALED_TWICE = (
    "`unscale_(optimizer)` has already been called on this optimizer since the last "
    "update(). Call it once, after the last backward()."
)
_TOO_LATE = (
    "`{name}(optimizer)` is being called after step(). Call it before, or call "
    "update() first to begin the next step."
)
_COMPLETE = (
    "`accumulate_(optimizer)` after `unscale_`, clipping or `step`, or inside a "
    "closure: the gradients of this step are complete. Call it after each backward(), "
    "before them."
)
_STEPPED_TWICE = (
    "`step(optimizer)` has already been called since the last update(). Call update() "
    "once a step, also if an exception came between the two."
)

REFUSED: dict[Call, dict[At, str]] = {
    "unscale_": {
        At.DIVIDED: _UNSCALED_TWICE,
        At.KEPT: _UNSCALED_TWICE,
        At.MIXED: _MIXED,
        At.STEPPED: _TOO_LATE,
    },
    "step": {At.MIXED: _MIXED, At.STEPPED: _STEPPED_TWICE},
    "step a closure": {
        At.KEPT: (
            "`step(optimizer, closure)` after `clip_grad_norm_` or `clip_grad_value_`: they "
            "left the gradients scaled for a step without a closure. Clip inside the closure, "
            "after backward()."
        ),
        At.EVALUATING: (
            "`step(optimizer, closure)` was called inside that optimizer's own closure. The "
            "closure computes the loss and calls `scaler.scale(loss).backward()`, no more."
        ),
    },
    "clip": {
        At.KEPT: (
            "`{name}(optimizer)`: its gradients are clipped already, and stay scaled "
            "until step(). Clip once a step."
        ),
        At.MIXED: _MIXED,
        At.STEPPED: _TOO_LATE,
    },
    "accumulate_": {
        at: _COMPLETE for at in (At.DIVIDED, At.KEPT, At.MIXED, At.STEPPED, At.EVALUATING)
    },
    "update": {
        At.SUMMED: (
            "`update()` was called between `accumulate_(optimizer)` and "
            "`step(optimizer)`: the sum of the micro-batches would be lost. Call `step` "
            "first."
        ),
        At.EVALUATING: (
            "`update()` was called inside a closure, in the middle of a step: its "
            "gradients are at the scale in force. Call it after "
            "`step(optimizer, closure)`."
        ),
    },
}
"""What no call may find; every place that is not here is allowed."""


def refuse(record: Record, call: Call, name: str | None = None) -> None:
    """Raises if this call is not allowed where the gradients of this optimizer are.

    Args:
        record: of the optimizer.
        call: what is about to be done.
        name: how the user has called it, where that differs.

    Raises:
        RuntimeError: with what to do instead.
    """
    refused = REFUSED[call]
    message = refused.get(At.EVALUATING) if record.evaluating else None
    message = message or refused.get(record.at)
    if message is not None:
        raise RuntimeError(message.replace("{name}", name or call))


NO_CHECKS = (
    "`update()`: no inf checks were recorded since the last one. Call "
    "`step(optimizer)` or `unscale_(optimizer)` first."
)
BETWEEN_STEPS = (
    "A GradScaler may only be pickled between steps. Call `update()` first, or pickle "
    "`scaler.state_dict()`."
)
NO_SCALE = (
    "`{call}` was called before any loss was scaled. Write `scaler.scale(loss).backward()` in "
    "place of `loss.backward()`. A stage of a pipeline that has no loss shares the scale of the "
    "others if all are given `process_group=`."
)
NO_BACKWARD = (
    "`step({optimizer})`: a loss was scaled, but backward() has not run, and there is no gradient. "
    "Write `scaler.scale(loss).backward()`: `scale` returns the product and starts nothing."
)
BACKWARD_SINCE = (
    "`step(optimizer)`: backward() has run since the last `accumulate_(optimizer)`. "
    "Call it after each backward(), or for none."
)
NOT_FILLED = "`accumulate_(optimizer)` finds no gradients. Call it after each backward()."
NOT_SCALED = (
    "`step(optimizer, closure)`: the closure ran backward() on a loss that was "
    "not scaled. Write `scaler.scale(loss).backward()` in it, and return "
    "`loss`."
)
SWITCHED_OFF = (
    "`accumulate_(optimizer)` of a scaler with enabled=False. Use "
    "`GradScaler(policy=gradscale.Static(1.0))`, which scales by 1 and checks."
)
TWO_SCALES = (
    "`update(new_scale={new_scale})` in the middle of an accumulation: backward() has "
    "run since the last step, and gradients at two scales would be added. Call "
    "`step(optimizer)` first, or `unscale_(optimizer)` to keep or drop what is there."
)
