"""A loss scaler's state without its system: what every system can say about where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from gradscale.policies.bits import MAX_FLOAT32, MIN_SCALE
from gradscale.policies.dynamic import Refill


@dataclass(frozen=True)
class ScalerSettings:
    """The configuration that was found beside a state. None: the source did not say.

    Settings are kept apart from the state because a run may change them when it resumes: loading a
    state never changes the settings of the scaler that loads it.

    Args:
        dynamic: False for a scale that never moves.
        growth_factor: what the scale is multiplied by when it grows.
        backoff_factor: what the scale is multiplied by when it backs off.
        growth_interval: finite steps in a row before the scale grows, counted as torch counts them.
        hysteresis: overflows before the scale backs off; 1 backs off at the first.
        hysteresis_refill: when the hysteresis starts anew, as in `gradscale.Dynamic`: ``"growth"``,
            ``"clean"`` (at every finite step) or ``"clean_or_backoff"``.
        min_scale: the floor.
        max_scale: the cap.

    Example:
        >>> ScalerSettings(growth_interval=1000).found
        ('growth_interval',)
    """

    dynamic: bool | None = None
    growth_factor: float | None = None
    backoff_factor: float | None = None
    growth_interval: int | None = None
    hysteresis: int | None = None
    hysteresis_refill: Refill | None = None
    min_scale: float | None = None
    max_scale: float | None = None

    @property
    def found(self) -> tuple[str, ...]:
        """The names of the settings that the source did say."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)


@dataclass(frozen=True)
class ScalerState:
    """Where a loss scaler stands, in the words of no particular system.

    Args:
        scale: the loss scale: finite, and no smaller than the smallest normal float32.
        good_steps: finite steps that count towards the next growth; None if the source did not say.
        hysteresis_left: overflows until the scale backs off, this one included; None likewise.
        settings: the configuration that was found beside the state.
        unread: what the source said and this value cannot hold.

    Raises:
        ValueError: if `scale` is no usable loss scale, or a count is negative.

    Example:
        >>> state = ScalerState(scale=1024.0, good_steps=7)
        >>> state.missing
        ('hysteresis_left',)
    """

    scale: float
    good_steps: int | None = None
    hysteresis_left: int | None = None
    settings: ScalerSettings = field(default_factory=ScalerSettings)
    unread: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # A NaN lies between no two numbers.
        if not MIN_SCALE <= self.scale <= MAX_FLOAT32:
            raise ValueError(
                f"`ScalerState(scale={self.scale})` must lie between 2**-126 and the largest "
                "float32. The scaler that saved it had lost its scale: put a good one in first."
            )
        if self.good_steps is not None and self.good_steps < 0:
            raise ValueError(f"`ScalerState(good_steps={self.good_steps})` must not be negative.")
        if self.hysteresis_left is not None and self.hysteresis_left < 1:
            raise ValueError(
                f"`ScalerState(hysteresis_left={self.hysteresis_left})` must be at least 1: the "
                "overflow that makes the scale back off counts too."
            )

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of the counters that the source did not say."""
        return tuple(n for n in ("good_steps", "hysteresis_left") if getattr(self, n) is None)

    def flat(self) -> dict[str, float | int | bool | str]:
        """State and settings that are known, by name.

        Example:
            >>> ScalerState(8.0, settings=ScalerSettings(growth_interval=5)).flat()
            {'scale': 8.0, 'growth_interval': 5}
        """
        own = {n: getattr(self, n) for n in ("scale", "good_steps", "hysteresis_left")}
        found = {n: getattr(self.settings, n) for n in self.settings.found}
        return {n: value for n, value in {**own, **found}.items() if value is not None}
