"""A recorded run under another policy: what is exact, and what is a guess."""

from gradscale.replay.policy_text import policy_from as policy_from
from gradscale.replay.replay import replay as replay
from gradscale.replay.result import Replay as Replay
from gradscale.replay.result import ReplayedStep as ReplayedStep
