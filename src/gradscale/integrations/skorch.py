"""skorch: its half precision is that of an `Accelerator` which the net was given."""

from __future__ import annotations

from typing import Protocol

from gradscale.integrations.accelerate import attach_accelerator
from gradscale.integrations.attachment import Attachment
from gradscale.integrations.wanted import WantedScaler


class Accelerated(Protocol):
    """A skorch net may be given an `Accelerator`."""

    accelerator: object


def attach_skorch(net: Accelerated, wanted: WantedScaler) -> Attachment:
    """Attaches to the `Accelerator` of a skorch net.

    Raises:
        TypeError: if it has none.
    """
    if getattr(net, "accelerator", None) is None:
        raise TypeError(
            f"`attach({type(net).__name__})`: skorch trains in half precision with an accelerator "
            "only. Derive the net from `skorch.hf.AccelerateMixin`, too, and give it "
            "`accelerator=Accelerator(mixed_precision='fp16')`."
        )
    return attach_accelerator(net.accelerator, wanted)
