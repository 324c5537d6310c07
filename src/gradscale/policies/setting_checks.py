"""Checks of a policy's hyperparameters: each message quotes the call, the rule and the way out."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Protocol

from gradscale.formats import FloatFormat
from gradscale.policies.bits import MAX_FLOAT32, MIN_SCALE


class _Bounded(Protocol):
    """A policy whose scale moves between two bounds; without a cap if `max_scale` is None."""

    @property
    def init_scale(self) -> float: ...
    @property
    def min_scale(self) -> float: ...
    @property
    def max_scale(self) -> float | None: ...


def check(policy: object, name: str, fits: bool, rule: str, way_out: str) -> None:
    """Refuses the setting `name` of `policy` unless it `fits`.

    Raises:
        ValueError: naming the setting and its value as they were typed, then the rule, then the way
        out.
    """
    if not fits:
        raise ValueError(f"{quote(policy, name)} {rule}. {way_out}")


def check_number(policy: object, *names: str) -> None:
    """Refuses settings that are not real numbers.

    Raises:
        TypeError: if one is of another kind; a bool is one.
    """
    for name in names:
        value = getattr(policy, name)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(
                f"{quote(policy, name)} must be a number, not {type(value).__name__}. "
                "Pass a Python float: a policy reads no tensor on the host."
            )


def check_count(policy: object, name: str, least: int, way_out: str) -> None:
    """Refuses a setting that is not a whole number of at least `least`.

    Raises:
        TypeError: if it is not an int.
        ValueError: if it is too small, or does not fit into int32.
    """
    value = getattr(policy, name)
    # To Python True is a number.
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{quote(policy, name)} must be an int, not {type(value).__name__}. "
            "Pass a whole number."
        )
    fits = least <= int(value) < 2**31
    check(policy, name, fits, f"must be at least {least} and below 2**31", way_out)


def check_share(policy: object, name: str, way_out: str) -> None:
    """Refuses a setting that is not a number in (0, 1)."""
    check_number(policy, name)
    check(policy, name, 0 < getattr(policy, name) < 1, "must lie strictly between 0 and 1", way_out)


def check_backoff(policy: object) -> None:
    """Refuses a `backoff_factor` outside (0, 1)."""
    way_out = "To keep the scale after an overflow, use `Static`."
    check_share(policy, "backoff_factor", way_out)


def check_scale_range(policy: _Bounded, cap_required: bool = False) -> None:
    """Refuses `init_scale`, `min_scale` and `max_scale` unless they are ordered normal numbers.

    A `max_scale` of None means that there is no cap, where that is allowed.
    """
    check_number(policy, "init_scale", "min_scale")
    low, high = float(policy.min_scale), MAX_FLOAT32
    fits = MIN_SCALE <= low <= MAX_FLOAT32
    rule = "must be a finite number of at least 2**-126, the smallest normal float32"
    check(policy, "min_scale", fits, rule, "A smaller scale would be flushed to zero.")
    if policy.max_scale is not None or cap_required:
        check_number(policy, "max_scale")
        high = float(policy.max_scale or 0.0)
        fits = low <= high <= MAX_FLOAT32
        rule = f"must be a finite float32 of at least `min_scale` ({low!r})"
        check(policy, "max_scale", fits, rule, "Raise it, or lower `min_scale`.")
    fits = MIN_SCALE <= policy.init_scale <= MAX_FLOAT32
    rule = "must be a finite number of at least 2**-126, the smallest normal float32"
    check(policy, "init_scale", fits, rule, "Pass a scale such as 2.0**16.")
    fits = low <= policy.init_scale <= high
    rule = f"must lie between `min_scale` ({low!r}) and `max_scale` ({high!r})"
    check(policy, "init_scale", fits, rule, "Move it, or pass the bound that it exceeds.")


def check_powers_of_two(policy: object, *names: str) -> None:
    """Refuses settings that are not powers of two, for a policy whose every scale is one."""
    for name in names:
        fits = math.frexp(getattr(policy, name))[0] == 0.5
        rule = "must be a power of two"
        check(policy, name, fits, rule, "Only then does unscaling give back the same bits.")


def check_octaves(policy: object, *names: str) -> None:
    """Refuses settings that are no finite number of octaves, or deviations, of at least 0."""
    check_number(policy, *names)
    for name in names:
        fits = 0 <= getattr(policy, name) < math.inf
        check(policy, name, fits, "must be finite and at least 0", "Pass 0 for no extra room.")


def check_placing(policy: _Bounded, powers_of_two: bool = True) -> None:
    """Refuses format, bounds and backoff of a policy that places the scale by what it measured."""
    check_format(policy)
    check_scale_range(policy, cap_required=True)
    check_backoff(policy)
    if powers_of_two:
        check_powers_of_two(policy, "init_scale", "min_scale", "max_scale", "backoff_factor")


def check_format(policy: object, name: str = "format") -> None:
    """Refuses a setting that is not a `FloatFormat`, a torch float dtype or the name of one."""
    try:
        FloatFormat.of(getattr(policy, name))
    except ValueError as error:
        raise ValueError(f"{quote(policy, name)} must be a number format. {error}") from None


def quote(policy: object, name: str) -> str:
    """The call as the user typed it, such as ```Dynamic(growth_factor=0.5)```."""
    return f"`{type(policy).__name__}({name}={getattr(policy, name)!r})`"


def check_flag(policy: object, name: str) -> None:
    """Refuses a setting that is not a bool.

    Raises:
        TypeError: if it is of another kind.
    """
    value = getattr(policy, name)
    if not isinstance(value, bool):
        raise TypeError(
            f"{quote(policy, name)} must be a bool, not {type(value).__name__}. Pass True or False."
        )
