"""Who decides the exponent of every node."""

from gradscale.backward.plan import ScalePlan as ScalePlan
from gradscale.plans.adaptive import Adaptive as Adaptive
from gradscale.plans.decision import Decision as Decision
from gradscale.plans.excluding import Excluding as Excluding
from gradscale.plans.planner import Planner as Planner
from gradscale.plans.planner import UserGiven as UserGiven
from gradscale.plans.planner import fixed as fixed
from gradscale.plans.situation import Situation as Situation
from gradscale.plans.structure_report import Bound as Bound
from gradscale.plans.structure_report import GroupReport as GroupReport
from gradscale.plans.structure_report import LossReport as LossReport
from gradscale.plans.structure_report import StructureReport as StructureReport
from gradscale.plans.windows import Windows as Windows
