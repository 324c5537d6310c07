"""The hyperparameters of a scaler: what may be given, and where torch's names for them live."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from gradscale.policies.bits import MAX_FLOAT32, MIN_SCALE
from gradscale.policies.dynamic import Dynamic
from gradscale.policies.policy import Policy

TORCH_NUMBERS: dict[str, float | int] = {
    "init_scale": 2.0**16,
    "growth_factor": 2.0,
    "backoff_factor": 0.5,
    "growth_interval": 2000,
}
"""The numbers of torch's constructor, and their defaults."""


MOST_DEVICES = 127
"""The highest index that torch gives a device; a number above it is a scale in the wrong place."""


class InvalidSetting(ValueError, AssertionError):
    """A ValueError that is also an AssertionError, because torch raises the latter for factors."""


def choose_policy(policy: Policy | None, enabled: bool, numbers: Mapping[str, Any]) -> Policy:
    """The policy given, or `Dynamic` made of torch's four numbers.

    Raises:
        ValueError: if a number is out of range, or a policy comes with numbers beside it.
    """
    if policy is not None:
        _refuse_no_policy(policy)
        beside = [f"{name}={it}" for name, it in numbers.items() if it != TORCH_NUMBERS[name]]
        if beside:
            raise ValueError(
                f"`GradScaler({', '.join(beside)}, policy={type(policy).__name__}(…))` says the "
                "same thing twice: a policy brings its own numbers. Put them into the policy."
            )
        return policy
    if not enabled:
        return Dynamic()
    try:
        chosen = Dynamic(**numbers)
    except ValueError as error:
        raise InvalidSetting(str(error).replace("`Dynamic(", "`GradScaler(", 1)) from None
    except TypeError as error:
        raise TypeError(str(error).replace("`Dynamic(", "`GradScaler(", 1)) from None
    _warn_of_rounding(numbers)
    return chosen


def _refuse_no_policy(policy: object) -> None:
    if isinstance(policy, Policy):
        return
    if isinstance(policy, type):
        hint = f"That is the class: pass an instance, `policy={policy.__name__}()`."
    else:
        hint = "Pass one such as `Dynamic()`, or a preset: `gradscale.preset('apex')`."
    raise TypeError(f"`GradScaler(policy={policy!r})` must be a policy. {hint}")


def listed(
    name: str, optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer]
) -> list[torch.optim.Optimizer]:
    """One optimizer, or several, as a list.

    Raises:
        TypeError: if something else is given, such as parameters.
    """
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
    for each in optimizers:
        if not isinstance(each, torch.optim.Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"`scaler.{name}({type(each).__name__}, …)` must be given an optimizer, or "
                "several, whose gradients it unscales. To clip some parameters only, call "
                f"`unscale_(optimizer)` and then `torch.nn.utils.{name}(parameters, …)`."
            )
    return optimizers


def no_optimizer(given: object) -> TypeError:
    """What to say of something that has no parameters to step; wrappers of optimizers have some."""
    hint = "`scaler.step(optimizer)`"
    if isinstance(getattr(given, "__self__", None), torch.optim.Optimizer):
        hint = "the optimizer itself, and what it evaluates: `scaler.step(optimizer, closure)`"
    elif isinstance(given, list | tuple):
        hint = "one at a time: `for optimizer in optimizers: scaler.step(optimizer)`"
    shown = getattr(given, "__qualname__", type(given).__name__)
    return TypeError(
        f"`scaler.step({shown})`, and every other call that is given an optimizer, must be given "
        f"an optimizer. Pass {hint}."
    )


def check_optimizers(call: str, optimizers: Iterable[object]) -> None:
    """Refuses what is no optimizer.

    Raises:
        TypeError: if one is something else.
    """
    for optimizer in optimizers:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"`{call}({type(optimizer).__name__})` must be given optimizers, such as "
                f"`{call}(slow_optimizer)`."
            )


def check_needs(call: str, needs: Iterable[str]) -> None:
    """Refuses what nobody can measure.

    Raises:
        ValueError: if one is neither ``"amax"`` nor ``"exponents"``.
    """
    for need in needs:
        if need not in ("amax", "exponents"):
            raise ValueError(f"`{call}({need!r})` must be 'amax' or 'exponents'. Pass one of them.")


def check_real(call: str, name: str, value: object) -> None:
    """Refuses what is no real number.

    Raises:
        TypeError: if it is neither a number nor a tensor of one element.
    """
    fits = value.numel() == 1 if isinstance(value, Tensor) else hasattr(value, "__float__")
    if isinstance(value, bool) or not fits:
        raise TypeError(f"`{call}({name}={value!r})` must be a number, such as `{name}=1.0`.")


def check_clip(call: str, name: str, value: float) -> None:
    """Refuses a threshold that is no threshold.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is negative or NaN.
    """
    check_real(call, name, value)
    if not value >= 0:
        raise ValueError(
            f"`{call}({name}={value})` must be 0 or more. It bounds the unscaled gradients: do not "
            "multiply it by the scale."
        )


def check_callback(call: str, callback: object) -> None:
    """Refuses what cannot be called when a step is skipped.

    Raises:
        TypeError: if it is not callable.
    """
    if not callable(callback):
        raise TypeError(
            f"`{call}` must be a function of an OptimizerOutcome. Pass one such as `print`."
        )


def check_listener(sink: object, every: int) -> None:
    """Refuses what cannot be called with metrics, or never would be.

    Raises:
        TypeError: if `sink` is not callable.
        ValueError: if `every` is below 1.
    """
    if not callable(sink):
        raise TypeError(
            f"`log_to({sink!r})` must be a function of a Metrics. Pass one such as `print`, or a "
            "sink of `gradscale.metrics`, such as `TensorBoard('runs/mine')`."
        )
    if every < 1:
        raise ValueError(f"`log_to(every={every})` must be at least 1. Pass 1 for every step.")


def _warn_of_rounding(numbers: Mapping[str, float]) -> None:
    for name in ("growth_factor", "backoff_factor"):
        # The mantissa, in [0.5, 1), of a power of two and of no other number.
        if math.frexp(numbers[name])[0] != 0.5:
            warnings.warn(
                f"`GradScaler({name}={numbers[name]})` is not a power of two: multiplying and "
                "dividing by the scale will round the gradients. 2.0 and 0.5 never do.",
                stacklevel=4,
            )


def present_device(device: str | torch.device | int | None) -> str:
    """`device`, or the accelerator or CPU that is there if ``"cuda"`` is not.

    Raises:
        TypeError: if it is no device.
        ValueError: if torch knows no device of this name.
    """
    rank = isinstance(device, int) and not isinstance(device, bool) and 0 <= device <= MOST_DEVICES
    if device is None or rank:
        return cast(str, device)  # torch takes it, and looks at its type only
    if not isinstance(device, str | torch.device):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"`GradScaler({type(device).__name__})`: the first argument is a device, such as "
            '"cuda". Optimizers are given to `scaler.step(optimizer)`.'
        )
    try:
        kind = torch.device(device).type
    except RuntimeError:
        # Torch's own words list the twenty names that it reserves, and not the call.
        raise ValueError(
            f"`GradScaler({device!r})`: torch knows no device of this name. Pass "
            f'{_accelerator()!r}, which is there, or another such as "cuda:1".'
        ) from None
    if kind != "cuda" or torch.cuda.is_available():
        return cast(str, device)
    present = _accelerator()
    warnings.warn(
        f"`GradScaler({device!r})`: CUDA is not available; scaling goes on on {present!r}. Pass "
        f"device={present!r} to say so, or `enabled=False` to switch scaling off.",
        stacklevel=3,
    )
    return present


def _accelerator() -> str:
    """The kind of accelerator that is there; the CPU without one."""
    accelerator = torch.accelerator.current_accelerator()
    return "cpu" if accelerator is None else accelerator.type


def check_scale(call: str, scale: float) -> None:
    """Refuses a scale that gradients cannot be multiplied and divided by.

    Raises:
        ValueError: if it is not finite, or below the smallest normal float32.
    """
    if not MIN_SCALE <= scale <= MAX_FLOAT32:
        raise ValueError(
            f"`{call}` must be a finite number of at least 2**-126, the smallest normal float32. "
            "Pass a scale such as 2.0**16."
        )


def replace_setting(policy: Policy, name: str, value: object) -> Policy:
    """The policy with another value for one hyperparameter.

    Raises:
        ValueError: if the policy has no such hyperparameter, or not this value.
    """
    if getattr(policy, name, TORCH_NUMBERS[name]) == value:
        return policy
    if not (dataclasses.is_dataclass(policy) and hasattr(policy, name)):
        raise ValueError(
            f"`set_{name}({value})`: {policy!r} has no `{name}`. Build the scaler with a policy "
            "that has one."
        )
    try:
        return dataclasses.replace(policy, **{name: value})
    except ValueError as error:
        raise InvalidSetting(str(error)) from None


def scale_to_set(new_scale: float | Tensor) -> float | Tensor:
    """What `update(new_scale)` writes.

    Raises:
        AssertionError: if it is a tensor of several elements, or one that requires a gradient.
        TypeError: if it is neither a number nor a tensor.
        ValueError: if it is no usable scale, as far as that is known without waiting for a device.
    """
    if not isinstance(new_scale, Tensor | int | float):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"`update(new_scale={new_scale!r})` must be a number or a tensor.")
    if not isinstance(new_scale, Tensor):
        check_scale(f"update(new_scale={new_scale})", new_scale)
        return float(new_scale)
    if new_scale.numel() != 1 or new_scale.requires_grad:
        raise AssertionError(
            f"`update(new_scale=tensor of shape {tuple(new_scale.shape)})` must have one element "
            "and not require a gradient. Pass `.detach()`, or a number."
        )
    new = new_scale.detach().reshape(())
    if new.device.type == "cpu":
        check_scale(f"update(new_scale=tensor({float(new)}))", float(new))
    # On an accelerator a check would wait for it: there the value is brought into range.
    return new.to(torch.float32).nan_to_num(MIN_SCALE, MAX_FLOAT32).clamp(MIN_SCALE, MAX_FLOAT32)
