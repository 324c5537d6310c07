"""Layer-wise loss scaling: walk, measure, plan and rescale, one training step after another."""

from gradscale.layerwise.layerwise import Layerwise as Layerwise
from gradscale.layerwise.layerwise_report import LayerwiseReport as LayerwiseReport
