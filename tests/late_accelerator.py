"""An accelerator that is none of torch's, made of Python, whose events happen when a test says so.

Run in a process of its own: torch can be given one such device, and not rid of it.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import torch

torch.utils.backend_registration._setup_privateuseone_for_python_backend("late")

sent: list[bool] = []
"""Of every copy to the host, whether the host was free to go on."""


@torch.library.impl("aten::empty.memory_format", "PrivateUse1")
def _empty(size: Any, *, dtype: Any = None, **unused: Any) -> Any:
    return torch._C._acc.create_empty_tensor(tuple(size), dtype or torch.float32)


@torch.library.impl("aten::_copy_from", "PrivateUse1")
def _copy(source: Any, target: Any, non_blocking: bool = False) -> Any:
    sent.append(non_blocking)
    return target.fill_(7)


class Event:
    """In the place of torch's, which on this device have happened at once."""

    all: ClassVar[list[Event]] = []
    waited = 0

    def __init__(self, device: Any) -> None:
        self.device, self.happened = torch.device(device), False

    def record(self, stream: Any) -> None:
        assert stream.device.type == self.device.type == "late"
        Event.all.append(self)

    def query(self) -> bool:
        return self.happened

    def synchronize(self) -> None:
        Event.waited += 1
        self.happened = True


def with_events() -> None:
    from gradscale.host_copies import HostCopies
    from gradscale.waiting_line import LONGEST_LINE, WaitingLine

    torch.Event = Event
    tensor = torch.empty(3, device="late")
    copies = HostCopies([tensor, None, torch.ones(1)])
    assert sent == [True] and not copies.arrived
    Event.all[-1].happened = True
    assert copies.arrived and copies.tensors[0].tolist() == [7, 7, 7] and copies.tensors[1] is None

    late = HostCopies([tensor])
    late.wait()
    assert late.arrived and Event.waited == 1

    handed: list[Any] = []
    line = WaitingLine(handed.append)
    steps = [HostCopies([tensor]) for _ in range(LONGEST_LINE + 1)]
    for step in steps[:3]:
        line.add(step)
    Event.all[-len(steps) + 1].happened = True  # the second one; the first is not there yet
    line.poll()
    assert handed == []
    Event.all[-len(steps)].happened = True
    line.poll()
    assert handed == steps[:2] and Event.waited == 1
    for step in steps[3:]:
        line.add(step)
    assert handed == steps[:2] and Event.waited == 1
    line.add(HostCopies([tensor]))
    line.add(HostCopies([tensor]))
    assert handed == steps[:3] and Event.waited == 2  # the line was too long: one was waited for
    line.poll(wait=True)
    assert len(handed) == len(steps) + 2 and not len(line)


def without_events() -> None:
    from gradscale.host_copies import HostCopies

    def absent(device: Any) -> Any:
        raise NotImplementedError("no events")

    waited: list[Any] = []
    torch.Event = absent
    torch.accelerator.synchronize = waited.append
    tensor = torch.empty(3, device="late")
    first, second = HostCopies([tensor]), HostCopies([tensor])
    assert sent == [True, True] and not first.arrived
    second.wait()
    assert first.arrived and second.arrived and waited == [tensor.device]
    assert not HostCopies([tensor]).arrived


if __name__ == "__main__":
    {"with_events": with_events, "without_events": without_events}[sys.argv[1]]()
    print("done")
