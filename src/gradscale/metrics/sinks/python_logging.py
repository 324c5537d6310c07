"""Metrics through Python's own logging."""

from __future__ import annotations

import logging
import math

from gradscale.metrics.metrics import Metrics


class Logging:
    """Logs a line a step; a skipped step with level WARNING.

    The `Metrics` are on the record, as ``record.metrics``, for handlers that want numbers.

    Args:
        logger: a logger or its name.
        level: of a step that was taken.

    Example:
        >>> import gradscale, sys
        >>> logging.basicConfig(stream=sys.stdout, format="%(message)s", force=True, level=20)
        >>> Logging()(gradscale.metrics.Metrics(step=7, scale=1024.0, steps=8))
        step 7: scale 2^10, 0 of 8 steps skipped
    """

    def __init__(self, logger: logging.Logger | str = "gradscale", level: int = logging.INFO):
        self.logger = logging.getLogger(logger) if isinstance(logger, str) else logger
        self.level = level

    def __call__(self, metrics: Metrics) -> None:
        """Logs a step."""
        level = max(self.level, logging.WARNING) if metrics.skipped else self.level
        if self.logger.isEnabledFor(level):
            self.logger.log(level, "%s", _text(metrics), extra={"metrics": metrics})


def _text(metrics: Metrics) -> str:
    mantissa, exponent = math.frexp(metrics.scale)
    scale = f"2^{exponent - 1}" if mantissa == 0.5 else f"{metrics.scale:g}"
    parts = [f"step {metrics.step}: scale {scale}"]
    if metrics.skipped:
        parts.append(f"skipped ({metrics.reason or 'unknown'})")
    parts.append(f"{metrics.skipped_steps} of {metrics.steps} steps skipped")
    if metrics.groups != 1:
        parts.append(f"{metrics.groups} loss scales")
    if metrics.amax is not None:
        parts.append(f"largest gradient {metrics.amax:.3g}")
    if metrics.lost is not None:
        parts.append(f"{100 * metrics.lost.lost_share:.2g} % lost ({metrics.lost.method})")
    return ", ".join(parts)
