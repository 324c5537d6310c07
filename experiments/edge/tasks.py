"""The tasks by name."""

from __future__ import annotations

import char_gpt
import depth
import detection
import diffusion
import divisor
import energies
import fine_tuning
import gemma
import mixture
import ode
import policy_gradient
import qwen3_moe
import recurrence
import trunk
import unet
import units
import vision_transformer

TASKS = {
    task.name: task
    for task in (
        units.TASK,
        trunk.TASK,
        energies.TASK,
        *(depth.task(name) for name in ("lion", "adam", "sgd", "lamb", "adam-1e-8")),
        *(recurrence.task(name) for name in ("cells", "gru", "lstm")),
        ode.TASK,
        mixture.TASK,
        qwen3_moe.TASK,
        gemma.TASK,
        detection.TASK,
        policy_gradient.TASK,
        divisor.TASK,
        *(fine_tuning.task(name) for name in ("whole", "lora")),
        *(char_gpt.task(name) for name in ("adam", "lion")),
        vision_transformer.TASK,
        unet.TASK,
        diffusion.TASK,
    )
}
