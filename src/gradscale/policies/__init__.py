"""How the loss scale is chosen: one policy a file, one contract."""

from gradscale.policies.policy import Observation as Observation
from gradscale.policies.policy import Policy as Policy
from gradscale.policies.policy import advance as advance
