"""Which hosts are known, by the names of their classes: none is imported to find out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class HostKind:
    """A class of another package, and what attaches to its objects.

    Attributes:
        package: the first part of the name of the module that defines it.
        name: of the class; its subclasses are of the same kind.
        module: of `gradscale.integrations`.
        function: in that module, of the host and a `WantedScaler`.
    """

    package: str
    name: str
    module: str
    function: str


HOSTS = (
    HostKind("accelerate", "Accelerator", "accelerate", "attach_accelerator"),
    HostKind("transformers", "Trainer", "transformers", "attach_trainer"),
    HostKind("lightning", "Trainer", "lightning", "attach_lightning"),
    HostKind("lightning", "Fabric", "lightning", "attach_lightning"),
    HostKind("pytorch_lightning", "Trainer", "lightning", "attach_lightning"),
    HostKind("lightning_fabric", "Fabric", "lightning", "attach_lightning"),
)
"""In the order in which they are looked for."""


def kind_of(host: Any) -> HostKind | None:
    """The kind of a host, from the names of its class and of those it derives from."""
    names = {(cls.__module__.partition(".")[0], cls.__qualname__) for cls in type(host).__mro__}
    return next((kind for kind in HOSTS if (kind.package, kind.name) in names), None)
