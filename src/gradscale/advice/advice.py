"""`Advice`: what a handful of steps said about a model, in numbers and in plain words."""

from __future__ import annotations

from dataclasses import dataclass

from gradscale.advice.verdict import Verdict
from gradscale.advice.verdict_sentences import NAMES, paragraph
from gradscale.files.json_text import JsonObject
from gradscale.truth import Nonfinite
from gradscale.watching.rows import Row


@dataclass(frozen=True)
class Advice:
    """Which formats are safe for a model, how to scale them, and the evidence.

    Attributes:
        model: the model's class.
        device: where it ran.
        optimizer: what trains it, the optimizer's class.
        losses: of the float32 steps.
        verdicts: one for each format, in the order asked for.
        hunt: where the float32 pass itself stopped being finite, if it did.
        notes: what else to know.
        seed: of the random numbers.

    Example:
        >>> from gradscale import advise
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batches = [torch.randn(16, 4) for _ in range(4)]
        >>> advice = advise((model, batches, lambda m, x: m(x).square().mean()), formats=["fp16"])
        >>> advice.verdicts[0].level, advice.verdicts[0].scaling
        ('safe', 'default')
    """

    model: str
    device: str
    optimizer: str
    losses: tuple[float, ...]
    verdicts: tuple[Verdict, ...]
    hunt: Nonfinite | None = None
    notes: tuple[str, ...] = ()
    seed: int = 0

    def __getitem__(self, format: str) -> Verdict:
        for verdict in self.verdicts:
            if verdict.format == format:
                return verdict
        known = ", ".join(verdict.format for verdict in self.verdicts) or "no format"
        raise KeyError(f"`advice[{format!r}]`: asked about {known}.")

    @property
    def best(self) -> Verdict | None:
        """The first format of those that reach the best level; None if none can be used."""
        for level in ("safe", "risky"):
            for verdict in self.verdicts:
                if verdict.level == level:
                    return verdict
        return None

    @property
    def code(self) -> str:
        """The line of code to write; empty if float32 is the answer."""
        return "" if self.best is None else self.best.code

    @property
    def rows(self) -> tuple[Row, ...]:
        """Modules and parameters of the first format, most lost elements first."""
        return self.verdicts[0].rows if self.verdicts else ()

    def __str__(self) -> str:
        lines = [*self._answer(), ""]
        for verdict in self.verdicts:
            lines += [*paragraph(verdict, self.optimizer), ""]
        return "\n".join([*lines, *self.notes]).rstrip()

    def _answer(self) -> list[str]:
        steps = len(self.losses)
        of = f"{steps} step{'s' if steps != 1 else ''} of {self.optimizer}"
        ran = f"{self.model} on {self.device}, {of}"
        if self.hunt is not None:
            where = str(self.hunt).replace("\n", "\n  ")
            blame = "not finite in float32 already, so no precision is to blame:"
            return [f"{ran}: {blame}", f"  {where}"]
        best = self.best
        if best is None:
            return [f"{ran}: stay with float32."]
        return [f"{ran}: {NAMES[best.format]} is {best.level}. Write:", f"  {best.code}"]

    def to_dict(self) -> JsonObject:
        """Plain numbers, strings and lists, for JSON."""
        return {
            "model": self.model,
            "device": self.device,
            "optimizer": self.optimizer,
            "seed": self.seed,
            "losses": list(self.losses),
            "best": None if self.best is None else self.best.format,
            "code": self.code,
            "verdicts": [verdict.to_dict() for verdict in self.verdicts],
            "nonfinite": None if self.hunt is None else self.hunt.to_dict(),
            "notes": list(self.notes),
        }
