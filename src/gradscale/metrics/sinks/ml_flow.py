"""Metrics in an MLflow run."""

from __future__ import annotations

from typing import Any

from gradscale.metrics.metrics import Metrics
from gradscale.metrics.sinks.optional import optional


class MLflow:
    """Logs to a run; each call is a request to the tracking server, so pass `log_to` an `every`.

    Args:
        run_id: of the run; None takes the active one.
        prefix: put before every name.
        mlflow: the module, or a stand-in with its `log_metrics`; None imports it.

    Raises:
        ImportError: if `mlflow` is not installed.
        RuntimeError: if no run is active.

    Example:
        >>> import gradscale
        >>> class Server:  # stands for the module mlflow
        ...     def log_metrics(self, metrics, step, run_id):
        ...         print(run_id, step, metrics["gradscale/scale"])
        >>> MLflow("a1b2", mlflow=Server())(gradscale.metrics.Metrics(step=7, scale=1024.0))
        a1b2 7 1024.0
    """

    def __init__(
        self, run_id: str | None = None, prefix: str = "gradscale/", *, mlflow: Any = None
    ) -> None:
        self.prefix = prefix
        self._mlflow = mlflow or optional("MLflow()", "mlflow", "mlflow")
        if run_id is None:
            active = self._mlflow.active_run()
            if active is None:
                # MLflow would start one by itself, where nobody looks for it.
                raise RuntimeError(
                    "`MLflow()` found no active run. Call `mlflow.start_run()` first, or pass "
                    "`run_id=`."
                )
            run_id = active.info.run_id
        self.run_id = run_id

    def __call__(self, metrics: Metrics) -> None:
        """Logs a step."""
        self.write(metrics.step, metrics.scalars())

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Logs numbers by name, in one request."""
        named = {f"{self.prefix}{name}": value for name, value in numbers.items()}
        self._mlflow.log_metrics(named, step=step, run_id=self.run_id)
