"""What parameters are called: as the user has said, or as their module calls them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradscale.backward.names import parameter_names
from gradscale.owning_module import owning_module


class KnownNames(dict[int, str]):
    """Names by `id(parameter)`.

    Example:
        >>> model, names = torch.nn.Sequential(torch.nn.Linear(2, 1)), KnownNames()
        >>> names.learn(list(model.parameters()))
        >>> sorted(names.values())
        ['0.bias', '0.weight']
    """

    def __init__(self) -> None:
        super().__init__()
        self._looked_for: set[int] = set()

    def know(self, model: torch.nn.Module) -> None:
        """Takes the names of this model, in the place of any others."""
        self.update({id(p): name for name, p in model.named_parameters()})

    def learn(self, parameters: Sequence[Tensor]) -> None:
        """Finds out what parameters without a name are called in the model that owns them.

        Looks for that model once for each set of parameters.
        """
        wanted = [p for p in parameters if id(p) not in self and id(p) not in self._looked_for]
        if not wanted:
            return
        self._looked_for |= set(map(id, wanted))
        model = owning_module(wanted)
        if model is not None:
            self.learn_from(model)

    def learn_from(self, model: torch.nn.Module) -> None:
        """Takes the names of this model for parameters that have none."""
        for key, found in parameter_names(model).items():
            self.setdefault(key, found.name)
