"""Everything that a run depends on, as one frozen value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch

from gradscale.files.json_text import Json, JsonObject
from gradscale.recipes import find
from gradscale.training.precision import PRECISIONS, check_precision
from gradscale.training.scaling import SCALINGS, make_scaler

DEVICES = ("cpu", "cuda", "xpu", "mps")


@dataclass(frozen=True)
class Settings:
    """One training run. Two runs with equal settings on the same machine are equal bit for bit.

    Attributes:
        recipe: the task.
        format: what the network computes in: a name of `PRECISIONS`.
        policy: who chooses the loss scale: a name of `SCALINGS`.
        seed: of the initial weights, the order of the data and every random number after.
        steps: how many.
        batch_size: items a step.
        lr: the peak learning rate.
        loss_divisor: the loss is divided by it before the backward pass, as gradient accumulation,
            a mean over more items or a small loss weight do; the unscaled gradients are multiplied
            by it again, so that in exact arithmetic it changes nothing.
        init_scale: where the scale starts; None leaves it to `policy`.
        device: where the network lives.
        emulate: ``auto``, ``on`` or ``off``: whether half precision is emulated in float32.
        threads: CPU threads; the order of summation, and so the last bit, depends on it.
        data: a folder to look for data files in.
    """

    recipe: str
    format: str
    policy: str
    seed: int
    steps: int
    batch_size: int
    lr: float
    loss_divisor: float = 1.0
    init_scale: float | None = None
    device: str = "cpu"
    emulate: str = "auto"
    threads: int = 1
    data: str | None = None

    def __post_init__(self) -> None:
        for name, (holds, rule) in _RULES.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                option = name.replace("_", "-")
                raise ValueError(f"`--{option} {value}` {rule}.")
        check_precision(self.format, self.emulate)
        make_scaler(self.policy, self.device, self.init_scale, self.format)

    def to_json(self) -> JsonObject:
        """The fields by name."""
        return asdict(self)

    @staticmethod
    def from_json(fields: Json) -> Settings:
        """The inverse of `to_json`.

        Raises:
            ValueError: if `fields` is not what `to_json` returns.
        """
        if not isinstance(fields, dict):
            raise ValueError("it does not hold an object")
        known = Settings.__annotations__
        for name in sorted(known.keys() ^ fields.keys()):
            fault = "lacks" if name in known else "has an unknown key"
            raise ValueError(f"it {fault} `{name}`")
        for name in ("seed", "steps", "batch_size", "threads"):
            if type(fields[name]) is not int:
                raise ValueError(f"`{name}` is {fields[name]!r}, which is not a whole number")
        given = cast("dict[str, Any]", fields)
        find(given["recipe"])
        return Settings(**given)


def settings_for(recipe: str, **given: Any) -> Settings:
    """The settings of a run: what is given, and the recipe's defaults for the rest.

    Raises:
        ValueError: if a value is out of range; the message quotes the option and the rule.

    Example:
        >>> settings_for("digits", steps=10).policy
        'dynamic'
    """
    defaults = find(recipe).defaults
    chosen = {name: value for name, value in given.items() if value is not None}
    precision = chosen.setdefault("format", "fp16")
    # They have float32's range: nothing to scale for.
    wide = precision in ("fp32", "bf16")
    fields: dict[str, Any] = {
        "policy": "none" if wide else "dynamic",
        "seed": 0,
        "steps": defaults.steps,
        "batch_size": defaults.batch_size,
        "lr": defaults.lr,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "threads": defaults.threads or torch.get_num_threads(),
    }
    return Settings(recipe, **{**fields, **chosen})


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _can_train(name: str) -> bool:
    try:
        return torch.empty(0, device=name).device.type in DEVICES
    except (RuntimeError, AssertionError):
        return False


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format": (PRECISIONS.__contains__, f"must be one of {', '.join(PRECISIONS)}"),
    "policy": (SCALINGS.__contains__, f"must be one of {', '.join(SCALINGS)}"),
    "steps": (_positive, "must be at least 1"),
    "batch_size": (_positive, "must be at least 1"),
    # Times the multiplier of `Trial._seed` it still fits into 64 bits.
    "seed": (lambda value: 0 <= value < 2**31, "must lie in [0, 2^31)"),
    "lr": (_positive, "must be a positive number"),
    "loss_divisor": (_positive, "must be a positive number"),
    # Where the scale and its reciprocal are normal numbers of float32.
    "init_scale": (lambda value: 2.0**-126 <= value < 2.0**128, "must lie in [2^-126, 2^128)"),
    "threads": (_positive, "must be at least 1"),
    "emulate": (("auto", "on", "off").__contains__, "must be one of auto, on, off"),
    "device": (
        _can_train,
        f"is not there, or no device to train on ({', '.join(DEVICES)}); `--device cpu` always is",
    ),
}
