"""Samples of large tensors that wait to be counted."""

from __future__ import annotations

import torch
from torch import Tensor

from gradscale.backward.measure_sample import Sample, count_samples
from gradscale.backward.measure_tally import Part, Tally

MOST_BYTES = 1 << 22
"""That wait at once."""


class Sampled:
    """Samples of one device's tensors on their way into its tally.

    Between two kernels of a backward pass, which displace from a processor's caches what Python
    needs, the dozen operations of counting take three times as long as in a loop of their own. So a
    hook only takes the sample.

    Args:
        tally: where they will be counted, in octaves that begin with their power of two.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._waiting: dict[int, tuple[Sample, list[int]]] = {}
        self._bytes = 0

    def add(self, place: int, tensor: Tensor) -> bool:
        """Takes a sample; False, and nothing done, if the whole tensor should be counted."""
        sample = Sample.of(tensor)
        if sample is None:
            return False
        if place in self._waiting or self._bytes > MOST_BYTES:
            self.count()
        self._waiting[place] = sample, [place]
        self._bytes += sample.bits.nbytes
        return True

    def repeat(self, source: int, place: int) -> bool:
        """Counts the sample that waits for `source` at `place` as well; False if none waits."""
        known = self._waiting.get(source)
        if known is not None:
            known[1].append(place)
        return known is not None

    def count(self) -> None:
        """Counts all that wait."""
        waiting, self._waiting, self._bytes = list(self._waiting.values()), {}, 0
        if not waiting:
            return
        with torch.no_grad(), torch._C._DisableTorchDispatch():
            rows = count_samples([sample for sample, _ in waiting])
            times = torch.tensor([len(places) for _, places in waiting], device="cpu")
            places = [place for _, places in waiting for place in places]
            self._tally.adopt(Part(places, rows.repeat_interleave(times, 0)))
