"""The tasks by name."""

from __future__ import annotations

import depth
import divisor
import recurrence
import units

TASKS = {
    task.name: task
    for task in (
        units.TASK,
        depth.task("lion"),
        depth.task("adam"),
        depth.task("sgd"),
        recurrence.TASK,
        divisor.TASK,
    )
}
