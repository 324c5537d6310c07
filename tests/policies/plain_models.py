"""Other systems' loss scalers as plain Python: host floats, no tensors, nothing of gradscale.

Written from the description of each system's behavior, to be slow and obvious. Each model has a
`scale`, and a `step` that takes whether the step overflowed, its largest unscaled gradient and its
counts per octave.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

FLOAT32_MAX = (2 - 2**-23) * 2.0**127


class Torch:
    def __init__(self, window: int = 2000) -> None:
        self.scale, self.window, self.good = 65536.0, window, 0

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if overflow:
            self.scale, self.good = self.scale * 0.5, 0
            return
        self.good += 1
        if self.good == self.window:
            if self.scale * 2 <= FLOAT32_MAX:
                self.scale *= 2
            self.good = 0


class Verl(Torch):
    def __init__(self, window: int = 400) -> None:
        super().__init__(window)


class LeRobot(Torch):
    """Hands torch's scaler the numbers of its `GradScalerConfig`."""


class Icefall(Torch):
    """torch's scaler from 1, and the block that icefall's training files have after `update()`.

    `stopped` is set where icefall raises its error that the scale is too small.
    """

    def __init__(
        self,
        window: int = 2000,
        below: tuple[tuple[int, float], ...] = ((25, 2.0), (100, 8.0), (400, 32.0)),
    ) -> None:
        super().__init__(window)
        self.scale, self.below, self.batch, self.stopped = 1.0, below, 0, False

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if self.stopped:
            return
        before = self.scale
        super().step(overflow, amax, counts)
        if self.scale < 1e-5:
            self.scale, self.stopped = before, True
            return
        if any(self.batch % every == 0 and self.scale < bound for every, bound in self.below):
            self.scale *= 2
        self.batch += 1


class Apex:
    def __init__(self, window: int = 2000) -> None:
        self.cap = 2.0**24
        self.scale, self.window, self.unskipped = min(self.cap, 2.0**16), window, 0

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if overflow:
            self.scale /= 2
            self.unskipped = 0
        else:
            self.unskipped += 1
        if self.unskipped == self.window:
            self.scale = min(self.cap, self.scale * 2)
            self.unskipped = 0


class DeepSpeed:
    """Grows where the iterations since the last overflow are a multiple of the window."""

    def __init__(self, window: int = 1000, hysteresis: int = 2, consecutive: bool = False) -> None:
        self.scale, self.window = 2.0**16, window
        self.hysteresis, self.left, self.consecutive = hysteresis, hysteresis, consecutive
        self.iteration, self.last_overflow = 0, -1

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if overflow:
            if self.left == 1:
                self.scale = max(self.scale / 2, 1.0)
            else:
                self.left -= 1
            self.last_overflow = self.iteration
        else:
            if self.consecutive:
                self.left = self.hysteresis
            if (self.iteration - self.last_overflow) % self.window == 0:
                self.left = self.hysteresis
                self.scale *= 2
        self.iteration += 1


class ApexKernel:
    """apex's `update_scale_hysteresis`: any clean step restores the whole hysteresis."""

    def __init__(self, window: int = 2000, hysteresis: int = 1) -> None:
        self.scale, self.window, self.good = 2.0**16, window, 0
        self.hysteresis, self.left = hysteresis, hysteresis

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if overflow:
            self.left -= 1
            self.good = 0
            if self.left <= 0:
                self.scale /= 2
        else:
            self.left = self.hysteresis
            self.good += 1
            if self.good == self.window:
                self.scale, self.good = self.scale * 2, 0


class Megatron:
    def __init__(self, window: int = 1000, hysteresis: int = 2) -> None:
        self.scale, self.window, self.good = 2.0**32, window, 0
        self.hysteresis, self.left = hysteresis, hysteresis

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if overflow:
            self.good = 0
            self.left -= 1
            if self.left <= 0:
                self.scale = max(self.scale * 0.5, 1.0)
        else:
            self.good += 1
            if self.good == self.window:
                self.good, self.left = 0, self.hysteresis
                self.scale *= 2


class Fairseq:
    """`stopped` is set where fairseq raises its FloatingPointError; the scale then stays."""

    def __init__(self, window: int = 2000, tolerance: float = 0.0) -> None:
        self.scale, self.window, self.tolerance = 2.0**15, window, tolerance
        self.iteration, self.last_overflow, self.last_rescale, self.overflows = 0, -1, -1, 0
        self.stopped = False

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if overflow:
            self.back_off()
        elif (self.iteration - self.last_overflow) % self.window == 0:
            self.grow()
        self.iteration += 1

    def back_off(self) -> None:
        before = self.scale
        self.last_overflow = self.iteration
        self.overflows += 1
        if self.overflows / (self.iteration - self.last_rescale) >= self.tolerance:
            self.lower()
            self.last_rescale, self.overflows = self.iteration, 0
        if self.too_low():
            self.scale, self.stopped = before, True

    def lower(self) -> None:
        self.scale /= 2

    def too_low(self) -> bool:
        return self.scale <= 1e-4

    def grow(self) -> None:
        self.scale *= 2
        self.last_rescale = self.iteration


class Metaseq(Fairseq):
    """As fairseq, with a window that follows the scale (even at the floor), and no stop."""

    def __init__(self, window: int = 256, tolerance: float = 0.0) -> None:
        super().__init__(window, tolerance)
        self.scale = 4.0

    def lower(self) -> None:
        self.scale /= 2
        self.window = max(int(self.window / 2), 1)

    def too_low(self) -> bool:
        return self.scale < 2.0**-5

    def grow(self) -> None:
        super().grow()
        self.window *= 2


class Keras:
    def __init__(self, window: int = 2000) -> None:
        self.scale, self.window, self.counter = 2.0**15, window, 0

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if overflow:
            self.counter, self.scale = 0, self.scale / 2
        elif self.counter == self.window - 1:
            self.counter, self.scale = 0, self.scale * 2
        else:
            self.counter += 1


class Jmp:
    def __init__(self, window: int = 2000) -> None:
        self.scale, self.window, self.counter = 2.0**15, window, 0

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if overflow:
            self.scale = max(1.0, self.scale / 2)
        elif self.counter == self.window - 1 and self.scale * 2 <= FLOAT32_MAX:
            self.scale *= 2
        self.counter = 0 if overflow else (self.counter + 1) % self.window


class Flax:
    """Compares the count before this step with the interval, so it takes one clean step more."""

    def __init__(self, window: int = 2000) -> None:
        self.scale, self.window, self.clean = 65536.0, window, 0

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        grow = self.clean == self.window
        if overflow:
            self.scale = max(self.scale * 0.5, 2.0**-126)
        elif grow:
            self.scale = min(self.scale * 2, FLOAT32_MAX)
        self.clean = 0 if grow or overflow else self.clean + 1


class Paddle:
    def __init__(self, window: int = 2000, decr_every: int = 1) -> None:
        self.scale, self.window, self.decr_every = 2.0**16, window, decr_every
        self.good, self.bad = 0, 0

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if overflow:
            self.good, self.bad = 0, self.bad + 1
            if self.bad == self.decr_every:
                self.scale, self.bad = self.scale * 0.5, 0
        else:
            self.bad, self.good = 0, self.good + 1
            if self.good == self.window:
                self.scale, self.good = self.scale * 2, 0


class MindSpore:
    def __init__(self, window: int = 2000, factor: int = 2) -> None:
        self.scale, self.window, self.factor, self.counter = 2.0**24, window, factor, 0

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if overflow:
            self.scale = max(1.0, self.scale / self.factor)
            self.counter = 0
            return
        if self.counter == self.window - 1 and self.scale * self.factor <= FLOAT32_MAX:
            self.scale *= self.factor
        self.counter = (self.counter + 1) % self.window


class ColossalAI:
    """Counts the hysteresis upwards, and forgets it only when the scale grows."""

    def __init__(self, window: int = 1000, hysteresis: int = 2) -> None:
        self.scale, self.window, self.good = 2.0**16, window, 0
        self.hysteresis, self.bad = hysteresis, 0

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if overflow:
            self.bad += 1
            self.good = 0
            if self.bad >= self.hysteresis:
                self.scale = max(1.0, self.scale * 0.5)
        else:
            self.good += 1
            if self.good == self.window:
                self.good, self.bad = 0, 0
                self.scale = min(2.0**32, self.scale * 2)


class OpenSeq2SeqBackoff:
    def __init__(self, window: int = 2000) -> None:
        self.scale, self.window = 2.0**14, window
        self.iteration, self.last_overflow = 0, -1

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if overflow:
            self.scale = min(max(self.scale / 2, 1.0), 2.0**14)
            self.last_overflow = self.iteration
        elif (self.iteration - self.last_overflow) % self.window == 0:
            self.scale = min(max(self.scale * 2, 1.0), 2.0**14)
        self.iteration += 1


class OpenSeq2SeqLogMax:
    """`slip`: a non-finite step counts as 2^16 in the logarithm, as in the original; else as 16."""

    def __init__(self, slip: bool = True) -> None:
        self.scale, self.steps = 1.0, 0
        self.mean, self.slow_mean, self.square = 0.0, 0.0, 0.0
        self.nonfinite = 65536.0 if slip else 16.0

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        if not overflow and amax == 0:
            return  # the original poisons its moments for good: not reproduced
        x = self.nonfinite if overflow else math.log2(amax)
        self.steps += 1
        self.mean = 0.99 * self.mean + 0.01 * x
        self.slow_mean = 0.999 * self.slow_mean + 0.001 * x
        self.square = 0.999 * self.square + 0.001 * x * x
        slow_weight = 1 - 0.999**self.steps
        variance = self.square / slow_weight - (self.slow_mean / slow_weight) ** 2
        cutoff = self.mean / (1 - 0.99**self.steps) + 3.09 * math.sqrt(max(variance, 0.0))
        self.scale = 2.0 ** min(max(16 - cutoff, 0.0), 14.0)


class PopART:
    """One bin edge at 2^12; it holds where there is nothing to count, and inf counts as large."""

    def __init__(self) -> None:
        self.scale = 1.0

    def step(self, overflow: bool, amax: float, counts: Mapping[int, int]) -> None:
        total = sum(counts.values())
        upper = sum(n for octave, n in counts.items() if 2.0**octave * self.scale >= 2.0**12)
        if overflow or (total and upper / total > 1e-7):
            self.scale /= 2
        elif total:
            self.scale *= 2
