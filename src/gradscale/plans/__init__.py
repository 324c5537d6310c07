"""Who decides the exponent of every node."""

from gradscale.plans.plan import ScalePlan as ScalePlan
