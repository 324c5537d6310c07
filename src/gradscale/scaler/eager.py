"""Methods that `torch.compile` leaves out of its graphs, as it leaves out torch's own scaler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gradscale.untraced import untraced

Method = TypeVar("Method", bound=Callable[..., object])


def eager(method: Method) -> Method:
    """The same method, of which dynamo leaves out all that it calls, too.

    Traced instead, the state of a step (ids, weak references, flags read by the host) would be
    frozen into the graph. `torch.compiler.disable` does so too, but imports the compiler with the
    library, and costs every call more than a scaler's whole bookkeeping.
    """
    method.__dict__["_torchdynamo_disable"] = True  # by which a frame that calls it breaks there
    return untraced(method)
