"""One training run, a comparison of runs, and the folder they are kept in."""

from gradscale.training.comparison import Candidate as Candidate
from gradscale.training.comparison import Comparison as Comparison
from gradscale.training.comparison import Planned as Planned
from gradscale.training.comparison import Spread as Spread
from gradscale.training.comparison import Summary as Summary
from gradscale.training.comparison import summaries_of as summaries_of
from gradscale.training.damage import DamagedRun as DamagedRun
from gradscale.training.damage import damaged as damaged
from gradscale.training.folder import RunFolder as RunFolder
from gradscale.training.folder import RunResult as RunResult
from gradscale.training.folder import only_writer as only_writer
from gradscale.training.precision import PRECISIONS as PRECISIONS
from gradscale.training.run import Interrupted as Interrupted
from gradscale.training.run import run as run
from gradscale.training.scaling import COMPARED as COMPARED
from gradscale.training.scaling import SCALINGS as SCALINGS
from gradscale.training.scaling import SYSTEMS as SYSTEMS
from gradscale.training.settings import Settings as Settings
from gradscale.training.settings import settings_for as settings_for
from gradscale.training.stop import StopRequest as StopRequest
from gradscale.training.stop import stop_on_signals as stop_on_signals
from gradscale.training.trial import StepRecord as StepRecord
from gradscale.training.trial import Trial as Trial
from gradscale.training.trial import load_data as load_data
