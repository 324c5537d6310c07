"""Numbers about every step, without waiting for the device, and where they can go."""

from gradscale.metrics.layers import layer_numbers as layer_numbers
from gradscale.metrics.layers import layers_to as layers_to
from gradscale.metrics.metrics import LostShare as LostShare
from gradscale.metrics.metrics import Metrics as Metrics
from gradscale.metrics.sinks.json_lines import JsonLines as JsonLines
from gradscale.metrics.sinks.ml_flow import MLflow as MLflow
from gradscale.metrics.sinks.prometheus import Prometheus as Prometheus
from gradscale.metrics.sinks.python_logging import Logging as Logging
from gradscale.metrics.sinks.tensorboard import TensorBoard as TensorBoard
from gradscale.metrics.sinks.weights_and_biases import WandB as WandB
