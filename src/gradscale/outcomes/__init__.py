"""What became of a step, and who has to know: reasons, counts, callbacks, alarms, schedules."""

from gradscale.outcomes.alarm import Alarm as Alarm
from gradscale.outcomes.counters import Counters as Counters
from gradscale.outcomes.outcome import OptimizerOutcome as OptimizerOutcome
from gradscale.outcomes.outcome import StepOutcome as StepOutcome
from gradscale.outcomes.triage import Culprit as Culprit
