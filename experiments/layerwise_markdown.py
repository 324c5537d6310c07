"""Writes results/layerwise.md and the table of docs/layerwise.md from results/layerwise_*.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "layerwise.md"
START, END = "<!-- table -->", "<!-- end of table -->"
ORDER = ("fp16", "e5m2", "e4m3")
HEAD = (
    "| gradients | scales by | loss [min, max] | lost, mean | lost, worst node | cosine | "
    "astray | skipped | scales |"
)


def table(result: dict[str, Any]) -> list[str]:
    """One task: a row for each format and strategy."""
    seeds = len(result["seeds"])
    lines = [
        f"## {result['task']}", "",
        f"{result['about']}; {result['steps']} steps, {seeds} seed{'s' if seeds > 1 else ''}; "
        f"torch {result['torch']}, {result['date']}. Loss in float32: "
        f"{_range(result['fp32']['loss'])}.", "",
        HEAD, "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for format in ORDER:
        found = result["formats"].get(format)
        for label, row in (found["rows"] if found else {}).items():
            shown = f"best constant, 2^{found['best']}" if label == "best constant" else label
            lines.append(
                f"| {format} | {shown} | {_range(row['loss'])} | {row['lost_mean'][0]:.2%} | "
                f"{row['lost_worst'][2]:.1%} | {row['cosine'][0]:.3f} | {row['astray'][0]:.0%} | "
                f"{row['skipped'][0]:.1f} | {row['scales'][0]:.0f} |"
            )
    return [*lines, "", verdict(result), ""]


def verdict(result: dict[str, Any]) -> str:
    """Where plain dynamic scaling is as good, said in one sentence for each format."""
    said: list[str] = []
    for format in ORDER:
        rows = result["formats"].get(format, {}).get("rows", {})
        if not {"torch GradScaler", "Windows"} <= rows.keys():
            continue
        plain, planned = rows["torch GradScaler"], rows["Windows"]
        gain = planned["cosine"][0] - plain["cosine"][0]
        lower = len(planned["runs"]) > 1 and planned["loss"][2] < plain["loss"][1]
        if abs(gain) < 0.01 and not lower:
            said.append(f"{format}: plain dynamic scaling is as good")
        else:
            better = "better" if gain > 0 else "worse"
            loss = "and every loss is lower" if lower else "but losses do not tell them apart"
            said.append(f"{format}: directions are {better} by {abs(gain):.3f} of cosine, {loss}")
    return "Windows against torch's GradScaler: " + "; ".join(said) + "."


def summary(results: list[dict[str, Any]]) -> str:
    """A row for each task and format: lost share and cosine under the main strategies."""
    names = ("none", "torch GradScaler", "best constant", "Adaptive product", "Windows")
    lines = [
        f"| task | gradients | {' | '.join(names)} | scales | loss: float32, torch, Windows |",
        "|---|---|" + "--:|" * (len(names) + 2),
    ]
    for result in results:
        for format in ORDER:
            rows = result["formats"].get(format, {}).get("rows", {})
            if "Windows" not in rows:
                continue
            cells = [
                f"{rows[n]['lost_mean'][0]:.1%}, {rows[n]['cosine'][0]:.3f}" if n in rows else ""
                for n in names
            ]
            losses = [result["fp32"], rows["torch GradScaler"], rows["Windows"]]
            lines.append(
                f"| {result['task']} | {format} | {' | '.join(cells)} | "
                f"{rows['Windows']['scales'][0]:.0f} | "
                f"{', '.join(format_loss(row) for row in losses)} |"
            )
    return "\n".join(lines)


def format_loss(row: dict[str, Any]) -> str:
    """The mean over seeds."""
    return f"{row['loss'][0]:.3f}"


def _range(spread: list[float]) -> str:
    mean, low, high = spread
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    lines = [
        "# Does layer-wise scaling help?", "",
        "Written by `python experiments/layerwise_table.py` and "
        "`python experiments/layerwise_markdown.py`; the numbers are in the JSON files beside "
        "this one. float16 forward, gradients of products rounded to the format named "
        "(`gradscale.emulation`). *lost*: elements that arrive at a node (every leaf module, at "
        "each call) non-zero in a float32 pass of the same weights and zero here. *cosine*: of a "
        "layer's weight gradient with the true one, mean over layers; *astray*: layers below 0.9. "
        "Both at an early, a middle and a late step. *scales*: how many loss scales were in use "
        "at the end. `Adaptive` has one seed and, as published, knows float16 only.", "",
    ]  # fmt: skip
    files = sorted(RESULTS.glob("layerwise_*.json"))
    results = [json.loads(file.read_text()) for file in files]
    for result in results:
        lines += table(result)
    (RESULTS / "layerwise.md").write_text("\n".join(lines))
    before, rest = PAGE.read_text().split(START)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{START}\n{summary(results)}\n{END}{after}")


if __name__ == "__main__":
    main()
