"""`scaler.layerwise.report()`: how many loss scales each structure needs, where and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from gradscale.plans.structure_report import StructureReport


@dataclass(frozen=True)
class LayerwiseReport(Sequence[StructureReport]):
    """One `StructureReport` for each structure of the backward graph that was measured.

    A sequence, the structure met latest last; `print` makes sentences of it.

    Attributes:
        structures: the same.
        functions: a sentence for each of the user's functions that stays at the loss scale.
        empty: what to say while there is none.

    Example:
        >>> import torch, gradscale
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> scaler = gradscale.GradScaler("cpu", layerwise=True)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     with torch.autocast("cpu", torch.float16):
        ...         loss = model(torch.ones(2, 4)).mean()
        ...     scaler.scale(loss).backward()
        ...     scaler.step(optimizer)
        ...     scaler.update()
        >>> report = scaler.layerwise.report()
        >>> report[-1].one_is_enough, report[-1].groups[0].modules
        (True, ('1', '0'))
        >>> print(report)
        one loss scale is enough, 2^11
    """

    structures: tuple[StructureReport, ...] = ()
    functions: tuple[str, ...] = ()
    empty: str = "nothing has been measured yet"

    @overload
    def __getitem__(self, index: int) -> StructureReport: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[StructureReport, ...]: ...
    def __getitem__(self, index: int | slice) -> StructureReport | tuple[StructureReport, ...]:
        return self.structures[index]

    def __iter__(self) -> Iterator[StructureReport]:
        return iter(self.structures)

    def __len__(self) -> int:
        return len(self.structures)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        return {
            "structures": [structure.to_dict() for structure in self.structures],
            "functions": list(self.functions),
        }

    def __str__(self) -> str:
        told = "\n".join(map(str, self.structures)) or self.empty
        return "\n".join([told, *self.functions])
