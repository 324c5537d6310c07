"""The account of an export: what the target took, what it cannot hold, what was assumed."""

from __future__ import annotations

from typing import NamedTuple, TypeVar, cast

from gradscale.checkpoints.state import ScalerState
from gradscale.torch_types import StateDict

Value = float | int | bool | str
Kind = TypeVar("Kind", bound=Value)


class Exported(NamedTuple):
    """A state in the target's own layout, and an account of the difference.

    Attributes:
        state: the dictionary that the target loads; safe under ``torch.load(weights_only=True)``.
        left_out: what was known and the target has no place for: it keeps its own setting there.
        assumed: what the target needs and was not known; the target's default was written.

    Example:
        >>> Exported({"loss_scale": 8.0}, left_out=("good_steps",), assumed=()).left_out
        ('good_steps',)
    """

    state: StateDict
    left_out: tuple[str, ...]
    assumed: tuple[str, ...]


class Draft:
    """Fills a target's dictionary from a state, and keeps the account.

    Example:
        >>> draft = Draft(ScalerState(8.0, good_steps=3))
        >>> draft.finish({"loss_scale": draft.take("scale", 65536.0)})
        Exported(state={'loss_scale': 8.0}, left_out=('good_steps',), assumed=())
    """

    def __init__(self, state: ScalerState) -> None:
        self._known = state.flat()
        self._unread = state.unread
        self._kept: set[str] = set()
        self._assumed: list[str] = []

    def take(self, name: str, default: Kind) -> Kind:
        """The value of `name`, or the target's default, which is then listed as assumed."""
        if name not in self._known:
            self._assumed.append(name)
            return default
        self._kept.add(name)
        return cast(Kind, self._known[name])  # a state has each name in one kind

    def choose(self, name: str, choices: tuple[str, ...]) -> str:
        """The value of `name` if the target has it, else the target's first, not kept."""
        value = str(self._known.get(name, choices[0]))
        if name not in self._known:
            self._assumed.append(name)
        elif value in choices:
            self._kept.add(name)
        return value if value in choices else choices[0]

    def known(self, name: str, default: Kind) -> Kind:
        """The value of `name` for a calculation, without saying that the target keeps it."""
        return cast(Kind, self._known.get(name, default))

    def keep(self, *names: str) -> None:
        """Say that the target keeps these, in whatever form."""
        self._kept.update(names)

    def fixed(self, **values: Value) -> None:
        """Say what the target always does: nothing is lost where the state agrees."""
        self._kept.update(n for n, value in values.items() if self._known.get(n) == value)

    def finish(self, state: StateDict) -> Exported:
        """The export, with everything known that nobody took listed as left out."""
        # A scale that backs off at the first overflow is what a target without hysteresis does.
        if self._known.get("hysteresis", 1) == 1:
            self.fixed(hysteresis=1, hysteresis_left=1)
            self.keep("hysteresis_refill")
        left_out = [name for name in self._known if name not in self._kept]
        return Exported(state, (*left_out, *self._unread), tuple(self._assumed))
