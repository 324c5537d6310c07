"""The autograd graph as plain data, what is measured on it, and the plan attached to it."""

from gradscale.backward.graph import Arrival as Arrival
from gradscale.backward.graph import BackwardGraph as BackwardGraph
from gradscale.backward.graph import Edge as Edge
from gradscale.backward.graph import Walk as Walk
from gradscale.backward.graph import walk as walk
from gradscale.backward.loss_entry import LossEntry as LossEntry
from gradscale.backward.multipliers import Multipliers as Multipliers
from gradscale.backward.plan import ScalePlan as ScalePlan
from gradscale.backward.rescale import Rescaled as Rescaled
from gradscale.backward.rescale import rescale as rescale
