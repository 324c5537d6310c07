"""Statistics of every layer on measuring steps, as trackers plot them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol


class LayerRow(Protocol):
    """What is asked of a row of a watch."""

    @property
    def name(self) -> str:
        """The parameter, module or cast."""
        ...

    @property
    def kind(self) -> str:
        """``"parameter"``, ``"module"``, ``"cast"`` or ``"activation"``."""
        ...

    @property
    def lost_share(self) -> float:
        """Lost elements over those that are not zero."""
        ...

    @property
    def headroom(self) -> float:
        """Octaves up to the format's largest number."""
        ...

    @property
    def exponent(self) -> int:
        """It is stored at ``2**exponent`` times its value."""
        ...

    @property
    def negligible(self) -> bool:
        """Whether it is zero up to rounding."""
        ...


class NamedNumbers(Protocol):
    """A sink that takes numbers by name: TensorBoard, WandB, MLflow of `gradscale.metrics`."""

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Writes them at this step."""
        ...


def layer_numbers(
    rows: Iterable[LayerRow], kinds: Sequence[str] = ("parameter",)
) -> dict[str, float]:
    """Three numbers a layer, by names that trackers group: ``layers/lost_share/head.weight``.

    `lost_share` is what its format loses of the gradient, `room` the octaves between its largest
    element and the format's largest number, `exponent` the power of two that it is stored at.
    What is zero, or zero up to rounding, has no room and is left out.

    Args:
        rows: of a watch.
        kinds: of the rows that are wanted.

    Example:
        >>> from types import SimpleNamespace
        >>> facts = {"lost_share": 0.25, "headroom": 3.0, "exponent": 16, "negligible": False}
        >>> layer_numbers([SimpleNamespace(name="head.weight", kind="parameter", **facts)])
        {'layers/lost_share/head.weight': 0.25, 'layers/room/head.weight': 3.0,
         'layers/exponent/head.weight': 16.0}
    """
    numbers: dict[str, float] = {}
    for row in rows:
        if row.kind in kinds and not row.negligible and math.isfinite(row.headroom):
            numbers[f"layers/lost_share/{row.name}"] = row.lost_share
            numbers[f"layers/room/{row.name}"] = row.headroom
            numbers[f"layers/exponent/{row.name}"] = float(row.exponent)
    return numbers


def layers_to(
    sink: NamedNumbers, kinds: Sequence[str] = ("parameter",)
) -> Callable[[int, Sequence[LayerRow]], None]:
    """What `watch.on_measured` calls, to have a tracker plot every layer.

        watch.on_measured(gradscale.metrics.layers_to(tracker))

    Args:
        sink: `TensorBoard`, `WandB` or `MLflow`, the same one that `log_to` has.
        kinds: of the rows that are wanted.

    Raises:
        TypeError: if the sink takes no numbers by name.

    Example:
        >>> layers_to(print)
        Traceback (most recent call last):
        ...
        TypeError: `layers_to(print)` must be ...
    """
    if not hasattr(sink, "write"):
        name = getattr(sink, "__name__", type(sink).__name__)
        raise TypeError(
            f"`layers_to({name})` must be a sink that takes numbers by name: `TensorBoard`, "
            "`WandB` or `MLflow`, or an object with `write(step, numbers)`."
        )

    def hear(step: int, rows: Sequence[LayerRow]) -> None:
        numbers = layer_numbers(rows, kinds)
        if numbers:
            sink.write(step, numbers)

    return hear
