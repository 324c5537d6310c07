"""Metrics in a Weights & Biases run."""

from __future__ import annotations

from typing import Any

from gradscale.metrics.metrics import Metrics
from gradscale.metrics.sinks.optional import optional


class WandB:
    """Logs to a run, over an axis of its own, ``gradscale/step``.

    By default the numbers join the row that your own next `wandb.log` writes, so that they never
    move W&B's step counter under you. Where nothing else logs, pass ``commit=True``.

    Args:
        run: from `wandb.init`; None takes the one that is running.
        prefix: put before every name.
        commit: whether each step is a row of its own.

    Raises:
        ImportError: if `wandb` is not installed.
        RuntimeError: if no run was started.

    Example:
        >>> import gradscale
        >>> class Run:  # stands for what wandb.init() returns
        ...     def define_metric(self, name, **settings):
        ...         pass
        ...     def log(self, row, commit):
        ...         print(row["gradscale/step"], row["gradscale/scale"], commit)
        >>> WandB(Run())(gradscale.metrics.Metrics(step=7, scale=1024.0))
        7 1024.0 False
    """

    def __init__(
        self, run: Any = None, prefix: str = "gradscale/", *, commit: bool = False
    ) -> None:
        self.prefix, self.commit = prefix, commit
        if run is None:
            run = optional("WandB()", "wandb", "wandb").run
        if run is None:
            raise RuntimeError(
                "`WandB()` found no run to log to. Call `wandb.init(...)` first, or pass `run=`."
            )
        self.run = run
        # Without an axis of its own, W&B plots over the number of calls of `log`.
        run.define_metric(f"{prefix}step", hidden=True)
        run.define_metric(f"{prefix}*", step_metric=f"{prefix}step")

    def __call__(self, metrics: Metrics) -> None:
        """Logs a step."""
        row: dict[str, float | str] = {f"{self.prefix}{k}": v for k, v in metrics.scalars().items()}
        row[f"{self.prefix}step"] = metrics.step
        if metrics.reason is not None:
            row[f"{self.prefix}reason"] = metrics.reason
        self.run.log(row, commit=self.commit)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Logs numbers by name."""
        row = {f"{self.prefix}{name}": value for name, value in numbers.items()}
        self.run.log({**row, f"{self.prefix}step": step}, commit=self.commit)
