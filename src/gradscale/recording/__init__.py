"""A run recorded step by step: what scale, what became of it, what was seen where."""

from gradscale.recording.read import Recording as Recording
from gradscale.recording.read import read as read
from gradscale.recording.recorder import Recorder as Recorder
from gradscale.recording.schema import Header as Header
from gradscale.recording.schema import RowInfo as RowInfo
from gradscale.recording.schema import Seen as Seen
from gradscale.recording.schema import Step as Step
