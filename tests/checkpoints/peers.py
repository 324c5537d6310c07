"""Plain models of other systems' scalers, from their sources: how each moves and what it saves."""

from __future__ import annotations

from typing import Any

import torch


class Torch:
    """torch.amp.GradScaler, by way of the real one's kernel."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.scale = torch.tensor(1024.0)
        self.tracker = torch.tensor(0, dtype=torch.int32)

    def update(self, overflow: bool) -> None:
        found = torch.tensor(float(overflow))
        torch._amp_update_scale_(self.scale, self.tracker, found, 2.0, 0.5, self.interval)

    def save(self) -> dict[str, Any]:
        scaler = torch.amp.GradScaler("cpu", growth_interval=self.interval)
        saved = scaler.state_dict()
        return {**saved, "scale": self.scale.item(), "_growth_tracker": self.tracker.item()}

    @property
    def now(self) -> float:
        return float(self.scale)


class Apex:
    """apex.amp.scaler.LossScaler: its window is always 2000, so this one starts near its end."""

    def __init__(self, interval: int) -> None:
        self.now, self.unskipped = 1024.0, 1990

    def update(self, overflow: bool) -> None:
        if overflow:
            self.now, self.unskipped = self.now / 2, 0
        else:
            self.unskipped += 1
        if self.unskipped == 2000:
            self.now, self.unskipped = self.now * 2, 0

    def save(self) -> dict[str, Any]:
        return {"loss_scaler0": {"loss_scale": self.now, "unskipped": self.unskipped}}


class DeepSpeed:
    """deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler, saved as its attributes."""

    def __init__(self, interval: int, hysteresis: int = 1, consecutive: bool = False) -> None:
        self.cur_scale, self.cur_iter, self.last_overflow_iter = 1024.0, 0, -1
        self.scale_factor, self.scale_window, self.min_scale = 2.0, interval, 2.0**-100
        self.delayed_shift = self.cur_hysteresis = hysteresis
        self.consecutive_hysteresis, self.dynamic = consecutive, True
        self.raise_error_at_min_scale = False

    def update(self, overflow: bool) -> None:
        if overflow:
            if self.delayed_shift == 1 or self.cur_hysteresis == 1:
                self.cur_scale = max(self.cur_scale / self.scale_factor, self.min_scale)
            else:
                self.cur_hysteresis -= 1
            self.last_overflow_iter = self.cur_iter
        else:
            if self.consecutive_hysteresis:
                self.cur_hysteresis = self.delayed_shift
            if (self.cur_iter - self.last_overflow_iter) % self.scale_window == 0:
                if not self.consecutive_hysteresis:
                    self.cur_hysteresis = self.delayed_shift
                self.cur_scale *= self.scale_factor
        self.cur_iter += 1

    def save(self) -> dict[str, Any]:
        return {**vars(self), "dtype": torch.half}

    @property
    def now(self) -> float:
        return self.cur_scale


class DeepSpeedFused:
    """deepspeed.runtime.fp16.fused_optimizer.FP16_Optimizer: it grows one finite step later."""

    def __init__(self, interval: int) -> None:
        self.now, self.iter, self.last, self.interval = 1024.0, 0, -1, interval

    def update(self, overflow: bool) -> None:
        if overflow:
            self.now, self.last = max(self.now / 2, 2.0**-100), self.iter
        else:
            stable = self.iter - self.last - 1
            if stable > 0 and stable % self.interval == 0:
                self.now *= 2
        self.iter += 1

    def save(self) -> dict[str, Any]:
        scaler = {"cur_scale": self.now, "cur_iter": self.iter, "last_overflow_iter": self.last}
        settings = {"dynamic_loss_scale": True, "scale_factor": 2, "scale_window": self.interval}
        return {**scaler, **settings, "clip_grad": 1.0, "optimizer_state_dict": {}}


class Keras:
    """keras.optimizers.LossScaleOptimizer: saved by variable path, with its interval."""

    def __init__(self, interval: int) -> None:
        self.now, self.counter, self.interval = 1024.0, 0, interval

    def update(self, overflow: bool) -> None:
        if overflow:
            self.now, self.counter = self.now / 2, 0
        elif self.counter == self.interval - 1:
            self.now, self.counter = self.now * 2, 0
        else:
            self.counter += 1

    def save(self) -> dict[str, Any]:
        import numpy as np

        return {
            "loss_scale_optimizer/iteration": np.array(0, dtype=np.int32),
            "loss_scale_optimizer/step_counter": np.array(self.counter, dtype=np.int32),
            "loss_scale_optimizer/dynamic_scale": np.array(self.now, dtype=np.float32),
            "sgd/iteration": np.array(41, dtype=np.int32),
            "dynamic_growth_steps": self.interval,
        }


class Flax:
    """flax.training.dynamic_scale.DynamicScale, saved as `dataclasses.asdict`."""

    def __init__(self, interval: int) -> None:
        self.now, self.steps, self.interval = 1024.0, 0, interval

    def update(self, overflow: bool) -> None:
        grow = self.steps == self.interval
        if overflow:
            self.now = max(self.now / 2, 2.0**-126)
        elif grow:
            self.now = self.now * 2
        self.steps = 0 if grow or overflow else self.steps + 1

    def save(self) -> dict[str, Any]:
        settings = {"growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": self.interval}
        return {**settings, "fin_steps": self.steps, "scale": self.now, "minimum_scale": 2.0**-126}


class Megatron:
    """megatron.core.optimizer.grad_scaler.DynamicGradScaler."""

    def __init__(self, interval: int, hysteresis: int = 2) -> None:
        self.now, self.growth, self.left = 1024.0, 0, hysteresis
        self.interval, self.hysteresis = interval, hysteresis

    def update(self, overflow: bool) -> None:
        if overflow:
            self.growth = 0
            self.left -= 1
            if self.left <= 0:
                self.now = max(self.now * 0.5, 2.0**-100)
        else:
            self.growth += 1
            if self.growth == self.interval:
                self.growth, self.left = 0, self.hysteresis
                self.now *= 2.0

    def save(self) -> dict[str, Any]:
        counters = {"growth_tracker": self.growth, "hysteresis_tracker": self.left}
        return {"scale": torch.tensor([self.now]), **counters}


class Paddle:
    """paddle.amp.GradScaler: overflows in a row, from 0 again after each back-off."""

    def __init__(self, interval: int, hysteresis: int = 1) -> None:
        self.now, self.good, self.bad = 1024.0, 0, 0
        self.interval, self.hysteresis = interval, hysteresis

    def update(self, overflow: bool) -> None:
        if overflow:
            self.good, self.bad = 0, self.bad + 1
            if self.bad == self.hysteresis:
                self.now, self.bad = self.now * 0.5, 0
        else:
            self.bad, self.good = 0, self.good + 1
            if self.good == self.interval:
                self.now, self.good = self.now * 2.0, 0

    def save(self) -> dict[str, Any]:
        import numpy as np

        return {
            "scale": np.array([self.now], dtype=np.float32),
            "incr_ratio": 2.0,
            "decr_ratio": 0.5,
            "incr_every_n_steps": self.interval,
            "decr_every_n_nan_or_inf": self.hysteresis,
            "incr_count": self.good,
            "decr_count": self.bad,
            "use_dynamic_loss_scaling": True,
        }
