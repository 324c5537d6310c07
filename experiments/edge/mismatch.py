"""How far rollouts are from the policy that is trained on them: 16 bits, with and without a plan.

    python experiments/edge/mismatch.py     minutes; then pages.py

Fine-tuning by reinforcement writes its rollouts with an engine that holds the weights and computes
everything in 16 bits, and trains with float32 weights under autocast. The policy gradient takes
the two for the same. Measured at the end of the trainings of `policy_gradient`.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import cast

import torch

from edge import machine
from gradscale.emulation import emulate
from gradscale.recipes.batches import generator
from policy_gradient import TASK, Writer
from strategy import Strategy
from training import begun, run
from way import Way

RESULT = Path(__file__).parents[1] / "results" / "mismatch.json"
ENGINES = {"bf16": torch.bfloat16, "fp16": torch.float16}
STRATEGIES = (Strategy("bf16", "none"), Strategy("fp16", "torch"), Strategy("fp16", "layerwise"))
TEXTS = 512


@torch.no_grad()
def mismatch(model: Writer, way: Way, engine: torch.dtype) -> tuple[float, float]:
    """Of what an engine in that dtype writes: how far are the log-probabilities of its symbols?

    Returns:
        The mean and the largest absolute difference to those under `way`, in nats a symbol.
    """
    rollout = deepcopy(model).to(engine)
    with emulate():
        text = rollout.write(generator(0, 2**20), TEXTS)
        written = rollout(text[:, :-1]).log_softmax(2)
    with way.computing():
        trained = model(text[:, :-1]).float().log_softmax(2)
    apart = (written - trained).gather(2, text[:, 1:, None]).abs()
    return apart.mean().item(), apart.max().item()


def table() -> str:
    """Of what stands in the results: a row a precision, a column a size of the advantage."""
    rows = json.loads(RESULT.read_text())["rows"]
    values = sorted({row["value"] for row in rows})
    lines = ["| | " + " | ".join(f"{value:g}" for value in values) + " |"]
    lines.append("|---" * (len(values) + 1) + "|")
    for label in (strategy.label for strategy in STRATEGIES):
        cells: list[str] = []
        for value in values:
            here = [row for row in rows if (row["strategy"], row["value"]) == (label, value)]
            mean = fmean(row["mean"] for row in here)
            largest = max(row["largest"] for row in here)
            cells.append(f"{mean:.1e} (at most {largest:.0e})")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train, measure, write."""
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for seed in range(3):
        for value in TASK.values:
            for strategy in STRATEGIES:
                training, way = begun(TASK, value, strategy, seed)
                run(training, way, TASK.steps)
                model = cast(Writer, training.model)
                mean, largest = mismatch(model, way, ENGINES[strategy.precision])
                with torch.no_grad(), way.scoring():
                    reward = training.score().item()
                rows.append(
                    {
                        "value": value,
                        "strategy": strategy.label,
                        "seed": seed,
                        "reward": reward,
                        "mean": mean,
                        "largest": largest,
                    }
                )
                print(rows[-1], flush=True)
    RESULT.write_text(json.dumps({**machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
