"""Finds scaler states in whatever a checkpoint holds, by the shape of the dictionaries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

from gradscale.checkpoints import detect_source
from gradscale.doctor.inert.tree import SavedArray, SavedObject
from gradscale.doctor.pickled_scalers import saved_by_object

# Of torch, Megatron, Paddle and flax; of DeepSpeed; of fairseq and apex; of Keras.
_SCALES = {"scale", "cur_scale", "loss_scale", "dynamic_scale"}
# Where frameworks keep a scaler, whose state is empty if it was disabled.
_EMPTY = {"scaler", "grad_scaler", "amp_scaler", "amp", "MixedPrecision"}
MOST_STATES = 1000
"""Found in one file: nobody has more, and a file that says so is up to something."""


class FoundState(NamedTuple):
    """A state and where it was.

    Attributes:
        system: who saved it; empty for a scaler that was disabled and saved nothing.
        where: such as ``["optimizer"]["grad_scaler"]``.
        state: the dictionary.
    """

    system: str
    where: str
    state: Mapping[str, object]


class _Place(NamedTuple):
    # Linked upwards, and written as text for what is found alone: a million paths would be a
    # million texts, each as long as its place is deep.
    value: object
    step: str
    above: _Place | None

    def path(self) -> str:
        steps: list[str] = []
        place: _Place | None = self
        while place is not None:
            steps.append(place.step)
            place = place.above
        return "".join(reversed(steps))


class Contents(NamedTuple):
    """What `search` has found, each in the order of the file.

    Attributes:
        states: of scalers.
        arrays: every tensor that is no part of a scaler's state, and before it where it is.
    """

    states: list[FoundState]
    arrays: list[tuple[str, SavedArray]]


def search(tree: object) -> Contents:
    """Every scaler state in a tree of plain data, and every tensor beside them.

    Args:
        tree: from `read_file`, or any dictionary.

    Example:
        >>> checkpoint = {"epoch": 3, "amp": {"loss_scaler0": {"loss_scale": 8.0, "unskipped": 1}}}
        >>> search(checkpoint).states[0][:2]
        ('apex', '["amp"]["loss_scaler0"]')
        >>> [where for where, _ in search({"model": [SavedArray("float32", (2,), None, 1)]}).arrays]
        ['["model"][0]']
    """
    found = Contents([], [])
    # A stack of our own instead of recursion: a file may be nested deeper than Python goes.
    # By identity, because a file may share its parts, and a container may hold itself.
    seen: set[int] = set()
    waiting = [_Place(tree, "", None)]
    while waiting:
        place = waiting.pop()
        if id(place.value) in seen:
            continue
        seen.add(id(place.value))
        if isinstance(place.value, SavedArray):
            found.arrays.append((place.path(), place.value))
        states = list(_states(place))
        if len(found.states) < MOST_STATES:
            found.states.extend(states)
        if not states:  # a state holds no other
            waiting += reversed(list(_inside(place)))
    return found


def _states(place: _Place) -> Iterator[FoundState]:
    held: object = place.value
    value = saved_by_object(held) if isinstance(held, SavedObject) else held
    if not isinstance(value, dict):
        return
    saved = cast("dict[str, object]", value)
    if not saved and place.step[2:-2] in _EMPTY:
        yield FoundState("", place.path(), saved)
    system = _system(saved, place)
    if system == "apex":
        for key in (key for key in saved if str(key).startswith("loss_scaler")):
            yield FoundState("apex", f'{place.path()}["{key}"]', {str(key): saved[key]})
    elif system is not None:
        yield FoundState(system, place.path(), saved)


def _system(saved: dict[str, object], place: _Place) -> str | None:
    last = {str(key).rsplit("/", 1)[-1] for key in saved}
    # Quickly: a checkpoint has tens of thousands of dictionaries, and each layout would be asked.
    if not (last & _SCALES or any(key.startswith("loss_scaler") for key in last)):
        return None
    try:
        system = detect_source(saved)
    except ValueError:
        return None
    # A configuration has a "loss_scale" as well; the optimizer's state has it beside its own.
    whole = place.above is None and "model" not in saved
    alone = whole or "param_groups" in saved or "optimizer" in place.step
    return None if system == "fairseq" and not alone else system


def _inside(place: _Place) -> Iterator[_Place]:
    value: object = place.value
    if isinstance(value, SavedObject):
        # What Python would write to reach them: `where` is pasted into programs.
        for name, part in value.attributes.items():
            yield from _container(part, f".{name}", place)
        yield from _container(value.entries, "", place)
        yield from _container(value.items, "", place)
        yield from _container(value.args, "", place)
    elif isinstance(value, dict):
        for key, part in cast("dict[object, object]", value).items():
            step = f'["{key}"]' if isinstance(key, str) else f"[{key!r:.20}]"
            yield from _container(part, step, place)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(cast("list[object]", value)):
            yield from _container(part, f"[{index}]", place)


def _container(part: object, step: str, place: _Place) -> Iterator[_Place]:
    if isinstance(part, dict | list | tuple | SavedObject | SavedArray):
        yield _Place(part, step, place)
