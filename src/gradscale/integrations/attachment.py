"""What was changed in a host, in words, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradscale.scaler import GradScaler

_ABSENT = object()


class Attachment:
    """A scaler in a host: says what was done there, and undoes it.

    Attributes:
        host: what was given to `attach`.
        scaler: the scaler in it.
        scalers: that one, and those of a host that has several.

    Example:
        >>> import gradscale
        >>> from types import SimpleNamespace
        >>> host = SimpleNamespace(scaler=None)
        >>> attachment = Attachment(host, gradscale.GradScaler("cpu"))
        >>> attachment.put(host, "scaler", attachment.scaler)
        >>> attachment
        <gradscale in SimpleNamespace: scaler; GradScaler('cpu'), Dynamic>
        >>> attachment.detach()
        >>> host.scaler is None
        True
    """

    def __init__(self, host: Any, scaler: GradScaler, *more: GradScaler) -> None:
        self.host = host
        self.scaler = scaler
        self.scalers = (scaler, *more)
        self._said: list[str] = []
        self._undo: list[Callable[[], object]] = []

    def put(self, owner: Any, name: str, value: Any, say: str | None = None) -> None:
        """Sets an attribute until `detach`.

        Args:
            owner: the object.
            name: of the attribute.
            value: to put there.
            say: what `repr` names it; None is `name`, and "" nothing.
        """
        before = vars(owner).get(name, _ABSENT) if hasattr(owner, "__dict__") else _ABSENT
        setattr(owner, name, value)

        def put_back() -> None:
            # What somebody else has put there since is not ours to remove.
            if getattr(owner, name, None) is not value:
                return
            if before is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

        self.undone_by(put_back)
        self.say(name if say is None else say)

    def say(self, words: str) -> None:
        """Adds to what `repr` says was done."""
        if words and words not in self._said:
            self._said.append(words)

    def undone_by(self, step: Callable[[], object]) -> None:
        """Adds a step to the way back, which goes last in, first out."""
        self._undo.append(step)

    def detach(self) -> None:
        """Leaves the host as it was, with the scaler that it had; a second call does nothing."""
        while self._undo:
            self._undo.pop()()

    @property
    def attached(self) -> bool:
        """Whether there is something to undo."""
        return bool(self._undo)

    def __repr__(self) -> str:
        host = type(self.host).__name__
        if not self.attached:
            return f"<gradscale, detached from {host}>"
        return f"<gradscale in {host}: {', '.join(self._said)}; {_in_short(self.scaler)}>"


def _in_short(scaler: GradScaler) -> str:
    if not scaler.is_enabled():
        return "GradScaler(enabled=False)"
    words = f"GradScaler({scaler._device!r}), {type(scaler.policy).__name__}"
    if scaler.layerwise is not None:
        words += f", layer-wise by {type(scaler.layerwise.planner).__name__}"
    return words
