"""What was lost, and where it went wrong: from passes of the same batch that leave no trace."""

from gradscale.truth.call_log import Spot as Spot
from gradscale.truth.gradients import Gradients as Gradients
from gradscale.truth.gradients import Output as Output
from gradscale.truth.gradients import capture_gradients as capture_gradients
from gradscale.truth.lost import Lost as Lost
from gradscale.truth.lost import compared as compared
from gradscale.truth.lost import measure_lost as measure_lost
from gradscale.truth.nonfinite import Nonfinite as Nonfinite
from gradscale.truth.nonfinite import find_nonfinite as find_nonfinite
from gradscale.truth.one_pass import one_pass as one_pass
from gradscale.truth.reference import reference as reference
