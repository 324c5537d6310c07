"""What was found out about one function that a user wrote, in words."""

from __future__ import annotations

from dataclasses import dataclass

from gradscale.backward.linearity import Kind


@dataclass(frozen=True)
class FunctionVerdict:
    """A backward function that torch did not write, and what it does to its gradient.

    Attributes:
        name: of its class.
        place: where it was met in the model, as ``" (in encoder.0)"``; empty if no model is known.
        kind: ``"linear"``; ``"injects"`` if it returns a gradient of its own; ``"nonlinear"``;
            ``"unknown"`` if it could not be probed.
        reaches: the parameter that its own gradient reaches first; empty unless it has one.
        wrong: how many times too small that gradient is after unscaling, at the scale of the pass
            in which it was seen: the scale, or 1 if the function multiplies by it itself.
        corrected: whether the scaler multiplies it by the scale.
        why: it is unknown.

    Example:
        >>> print(FunctionVerdict("AddAuxiliaryLoss", "", "injects", "router.weight", 1024.0))
        AddAuxiliaryLoss.backward returns a gradient of its own, which reaches router.weight. It \
does not come from the scaled loss, so that after unscaling it is 1,024 times too small.
    """

    name: str
    place: str
    kind: Kind
    reaches: str = ""
    wrong: float = 1.0
    corrected: bool = False
    why: str = ""

    @property
    def wrongly(self) -> str:
        """By how much its own gradient is wrong; empty if it is right."""
        if self.wrong == 1 or self.corrected:
            return ""
        size = self.wrong if self.wrong > 1 else 1 / self.wrong
        return f"{size:,g} times too {'small' if self.wrong > 1 else 'large'}"

    @property
    def held(self) -> str:
        """Why a plan leaves it at the loss scale; empty if it may stand at any."""
        if self.kind == "nonlinear":
            return "it is not linear in its gradient"
        if self.kind == "unknown":
            return f"it could not be probed, because {self.why}"
        done = ", which is multiplied by the scale" if self.corrected else ""
        return f"it returns a gradient of its own{done}" if self.kind == "injects" else ""

    def __str__(self) -> str:
        called = f"{self.name}.backward{self.place}"
        if self.kind == "linear":
            return f"{called} is linear in its gradient."
        if self.kind == "nonlinear":
            return f"{called} is not linear in its gradient: its result depends on the scale."
        if self.kind == "unknown":
            return f"{called} could not be probed, because {self.why}."
        own = f"{called} returns a gradient of its own, which reaches {self.reaches}."
        if self.corrected:
            return f"{own} The scaler multiplies it by the scale."
        if not self.wrongly:
            return f"{own} At this scale it is right."
        return (
            f"{own} It does not come from the scaled loss, so that after unscaling it is "
            f"{self.wrongly}."
        )
