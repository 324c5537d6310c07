"""The scale itself: gone, at its floor, too low, too high, not exact."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradscale.doctor.examined_scaler import Patient
from gradscale.doctor.finding import Finding
from gradscale.doctor.number_text import is_power_of_two, scale_words
from gradscale.doctor.system_defaults import cap_of, floor_of
from gradscale.policies.bits import MIN_SCALE

HOPELESS = 2.0**-16
"""Below it only gradients above 2^32 would overflow: those of no model, only of broken numbers."""

HIGHEST_FOR_FLOAT16_LOSS = 2.0**16
"""float16 ends at 65504: at this scale, where torch starts, a float16 loss must be below 1."""

_RESET = (
    "Find out what was not finite (`gradscale.truth.find_nonfinite` names the first place), go "
    "back to a checkpoint from before, and start the scale anew, say at 65536"
)


def check_scale_value(patient: Patient) -> Iterator[Finding]:
    """What the value of the scale says on its own."""
    if patient.system == "none":
        return
    value = patient.scale
    gone = _gone(patient, value)
    if gone is not None:
        yield gone  # whatever else could be said follows from it
        return
    if patient.broken is not None:
        yield Finding(
            "error", "unreadable", "The state cannot be restored.", patient.broken,
            "Save it again from the running scaler, or start a new one at this scale.",
        )  # fmt: skip
    yield from _low(patient, value)
    yield from _high(patient, value)
    # Products with a power of two only move the exponent; any other rounds the last bit.
    if not is_power_of_two(value):
        yield Finding(
            "note", "not-a-power-of-two", "The scale is not a power of two.",
            f"The scale is {value:g}: scaling and unscaling round every gradient.",
            "Start from a power of two, and grow and back off by powers of two.",
        )  # fmt: skip


def _gone(patient: Patient, value: float) -> Finding | None:
    if math.isnan(value) and patient.broken is not None:
        return Finding(
            "error", "no-scale", "The state has no scale that can be read.", patient.broken,
            "Save the scaler's state again; without a scale it cannot be restored.",
        )  # fmt: skip
    if not math.isfinite(value) or value < 0:
        return Finding(
            "error", "not-finite", f"The scale is {value:g}.",
            "Every gradient that is scaled by it is lost.", f"{_RESET}.",
        )  # fmt: skip
    if value == 0:
        return Finding(
            "error", "zero", "The scale is 0.",
            "Overflow after overflow halved it until float32 had nothing left. Gradients divided "
            "by it are NaN, and the next step may write them to weights.", f"{_RESET}.",
        )  # fmt: skip
    if value < MIN_SCALE:
        return Finding(
            "error", "subnormal", "The scale is subnormal.",
            f"The scale is {value:g}, below 2^-126: its reciprocal is infinite or inexact.",
            f"{_RESET}.",
        )  # fmt: skip
    return None


def _low(patient: Patient, value: float) -> Iterator[Finding]:
    floor, said = floor_of(patient.system, patient.settings, patient.policy)
    moves = patient.dynamic is not False
    # A floor as high as the usual first scale was chosen, and is no sign of anything.
    if moves and value <= floor and value < 65536:
        whose = "its min_scale" if said else "the system's default floor"
        stops = patient.system.startswith("deepspeed")
        raises = " DeepSpeed stops with an error at the next overflow." if stops else ""
        yield Finding(
            "error" if value < HOPELESS else "warning", "at-floor", "The scale is at its floor.",
            f"The scale is {scale_words(value)}, and {whose} is {scale_words(floor)}: it can fall "
            f"no further.{raises}",
            f"{_RESET}. A gradient that overflows at any scale is a matter of the data, the "
            "learning rate or the model.",
        )  # fmt: skip
    elif moves and value < HOPELESS:
        yield Finding(
            "error", "collapsed", "The scale has collapsed.",
            f"At {scale_words(value)} only gradients above {65504 / value:.0e} overflow; what "
            "drove it there was infinite or NaN at any scale.",
            f"{_RESET}.",
        )  # fmt: skip
    elif value < 1:
        yield Finding(
            "warning", "below-one", "The scale makes gradients smaller.",
            f"The scale is {scale_words(value)}: gradients overflow even unscaled.",
            "Average the loss instead of summing it, lower the learning rate, or clip; or let "
            "layers have their own scales: `gradscale.GradScaler(layerwise=True)`.",
        )  # fmt: skip


def _high(patient: Patient, value: float) -> Iterator[Finding]:
    cap = cap_of(patient.system, patient.settings, patient.policy)
    if cap is not None and value >= cap and patient.dynamic is not False:
        yield Finding(
            "note", "at-cap", "The scale is at its cap.",
            f"The scale is {scale_words(value)}, and max_scale is {scale_words(cap)}.",
            "If gradients are lost below (`gradscale inspect` says so), raise max_scale.",
        )  # fmt: skip
    if value > HIGHEST_FOR_FLOAT16_LOSS:
        yield Finding(
            "note", "above-float16", "The scale is more than a float16 tensor holds.",
            f"The scale is {scale_words(value)}; float16 ends at 65504. A loss in float32 carries "
            "it; a float16 loss times this scale is infinite.",
            "Compute the loss in float32, as autocast does.",
        )  # fmt: skip
