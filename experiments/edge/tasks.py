"""The tasks by name."""

from __future__ import annotations

import depth
import detection
import divisor
import mixture
import ode
import policy_gradient
import recurrence
import trunk
import units

TASKS = {
    task.name: task
    for task in (
        units.TASK,
        trunk.TASK,
        depth.task("lion"),
        depth.task("adam"),
        depth.task("sgd"),
        recurrence.TASK,
        ode.TASK,
        mixture.TASK,
        detection.TASK,
        policy_gradient.TASK,
        divisor.TASK,
    )
}
