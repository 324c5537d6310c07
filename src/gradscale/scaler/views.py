"""Attributes of a scaler that one of its parts keeps."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from gradscale.scaler.settings import TORCH_NUMBERS, replace_setting


class View:
    """An attribute of a scaler that is kept by one of its parts.

    Args:
        place: the part and its attribute, with a dot between.
        made_of: turns what other code puts there into what the part keeps.
        then: what the part does once something was put there.
    """

    def __init__(
        self,
        place: str,
        made_of: Callable[[Any], Any] | None = None,
        then: Callable[[Any], object] | None = None,
    ) -> None:
        self._made_of, self._then = made_of, then
        self._part, _, self._name = place.partition(".")
        self._read = attrgetter(place)

    def __get__(self, scaler: Any, owner: type) -> Any:
        return self if scaler is None else self._read(scaler)

    def __set__(self, scaler: Any, value: Any) -> None:
        part = getattr(scaler, self._part)
        setattr(part, self._name, value if self._made_of is None else self._made_of(value))
        if self._then is not None:
            self._then(part)


class PolicySetting:
    """Torch's private attribute for a hyperparameter, kept where it belongs: in the policy."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, scaler: Any, owner: type) -> Any:
        if scaler is None:
            return self
        return getattr(scaler.policy, self.name, TORCH_NUMBERS[self.name])

    def __set__(self, scaler: Any, value: Any) -> None:
        scaler.policy = replace_setting(scaler.policy, self.name, value)
