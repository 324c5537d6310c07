"""Which formats are safe for a model, how to scale them, and the evidence."""

from gradscale.advice.advice import Advice as Advice
from gradscale.advice.advise import FORMATS as FORMATS
from gradscale.advice.advise import advise as advise
from gradscale.advice.evidence import ScalingEvidence as ScalingEvidence
from gradscale.advice.format_trial import Moment as Moment
from gradscale.advice.model_step import ModelStep as ModelStep
from gradscale.advice.planned_passes import ScaleGroup as ScaleGroup
from gradscale.advice.verdict import Verdict as Verdict
