"""Metrics as curves in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from gradscale.metrics.metrics import Metrics
from gradscale.metrics.sinks.optional import optional


class CurveWriter(Protocol):
    """What is used of a `torch.utils.tensorboard.SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int, /) -> object: ...  # noqa: D102
    def add_text(self, tag: str, text_string: str, global_step: int, /) -> object: ...  # noqa: D102
    def close(self) -> object: ...  # noqa: D102


class TensorBoard:
    """Writes one scalar a number, and a line of text for every skipped step that it is shown.

    Args:
        log_dir: a folder, or a `SummaryWriter` that is there already.
        prefix: put before every name.

    Raises:
        ImportError: if `tensorboard` is not installed.

    Example:
        >>> import gradscale
        >>> class Writer:  # stands for torch.utils.tensorboard.SummaryWriter
        ...     def add_scalar(self, name, value, step):
        ...         if name.endswith("log2_scale"):
        ...             print(name, value, step)
        >>> TensorBoard(Writer())(gradscale.metrics.Metrics(step=7, scale=1024.0))
        gradscale/log2_scale 10.0 7
    """

    def __init__(self, log_dir: str | Path | CurveWriter, prefix: str = "gradscale/") -> None:
        self.prefix = prefix
        if isinstance(log_dir, str | Path):
            call = f"TensorBoard({str(log_dir)!r})"
            module = optional(call, "torch.utils.tensorboard", "tensorboard")
            self.writer: CurveWriter = module.SummaryWriter(str(log_dir))
        elif hasattr(log_dir, "add_scalar"):
            self.writer = log_dir
        else:
            raise TypeError(
                f"`TensorBoard({log_dir!r})` must be a folder or a SummaryWriter. Pass one such as "
                "'runs/mine'."
            )

    def __call__(self, metrics: Metrics) -> None:
        """Writes a step."""
        self.write(metrics.step, metrics.scalars())
        if metrics.skipped:
            self.writer.add_text(f"{self.prefix}skipped", metrics.reason or "unknown", metrics.step)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Writes numbers by name."""
        for name, value in numbers.items():
            self.writer.add_scalar(self.prefix + name, value, step)

    def close(self) -> None:
        """Writes out what is buffered."""
        self.writer.close()
