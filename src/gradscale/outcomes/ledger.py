"""Outcomes counted and called back, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscale.capturing import capturing
from gradscale.host_copies import HostCopies
from gradscale.outcomes.counters import Counters
from gradscale.outcomes.outcome import OptimizerOutcome
from gradscale.waiting_line import WaitingLine


@dataclass
class _UnderWay:
    """An outcome that the host does not know yet, and its flag on the way there.

    A flag on the CPU is not sent: to read it is a host read all the same, so that waits for
    somebody who asks.
    """

    outcome: OptimizerOutcome
    copies: HostCopies[Tensor] | None

    @property
    def arrived(self) -> bool:
        if not self.outcome.settled and self.copies is not None and self.copies.arrived:
            self.outcome.arrive(bool(self.copies.tensors[0].item()))
        return self.outcome.settled

    def wait(self) -> None:
        if self.copies is None:
            _ = self.outcome.skipped
        else:
            self.copies.wait()


class Ledger:
    """Outcomes in order, counted as soon as the host knows them and without waiting for the device.

    Outcomes of unfused optimizers are known at once. Those of fused ones wait in a queue; their
    flags travel to the host on their own, and whoever reads `counters` waits for them.

    Attributes:
        on_skip: called with every outcome that was skipped.
        copies: whether every outcome keeps the counters that it was counted into.
        attentive: whether steps that were taken are news, too.
        news: outcomes counted since somebody last looked, and emptied the list.
        settled_counters: what has been counted so far, without waiting.
    """

    def __init__(self, on_skip: Sequence[Callable[[OptimizerOutcome], object]] = ()) -> None:
        self.on_skip = list(on_skip)
        self.copies = False
        self.attentive = False
        self.news: list[OptimizerOutcome] = []
        self._in_a_row: dict[int, int] = {}
        self.settled_counters = Counters()
        # A method, and no lambda: a scaler is pickled whole, this line included.
        self._line = WaitingLine(self._count_late)

    @property
    def counters(self) -> Counters:
        """Every outcome so far, counted. Waits for the device where one is still under way."""
        self._line.poll(wait=True)
        return self.settled_counters

    @counters.setter
    def counters(self, counters: Counters) -> None:
        self._line.clear()
        self.settled_counters = counters

    def keep_copies(self, last_step: Iterable[OptimizerOutcome]) -> None:
        """From now on every outcome keeps the counters that it was counted into.

        Args:
            last_step: the outcomes of the latest step, which are to have them too.
        """
        self.copies = True
        if not self._line:
            for outcome in last_step:
                outcome.counted = self.settled_counters.copied()

    @property
    def behind(self) -> bool:
        """Whether outcomes are still under way, so that `settled_counters` lacks them."""
        return bool(self._line)

    def add(self, step: Iterable[OptimizerOutcome]) -> bool:
        """Takes the outcomes of a step; counts now those that cost nothing.

        Returns:
            Whether there is news.
        """
        self.settled_counters.updates += 1
        for outcome in step:
            if outcome.settled and not self._line.things:
                self._count(outcome)
            else:
                self._queue(outcome)
        return bool(self.news)

    def _count(self, outcome: OptimizerOutcome) -> None:
        counters = self.settled_counters
        counters.count((outcome.reason or "overflow") if outcome.skipped else None)
        if self.copies:
            outcome.counted = counters.copied()
        # Known by the skips in a row: `outcome.skipped` is a call, and this is every step.
        if not counters.consecutive:
            if self._in_a_row:
                self._in_a_row.pop(outcome.key, None)
            if self.attentive:
                self.news.append(outcome)
            return
        outcome.in_a_row = self._in_a_row[outcome.key] = self._in_a_row.get(outcome.key, 0) + 1
        self.news.append(outcome)
        for callback in self.on_skip:
            callback(outcome)

    def _count_late(self, under_way: _UnderWay) -> None:
        self._count(under_way.outcome)

    def _queue(self, outcome: OptimizerOutcome) -> None:
        copies = None
        flag = outcome.found_inf[0]
        if not outcome.settled and not flag.is_cpu and torch.accelerator.is_available():
            if capturing():
                return  # The host runs this once, the graph many times: nobody can count.
            copies = HostCopies([flag])
        self._line.add(_UnderWay(outcome, copies))
