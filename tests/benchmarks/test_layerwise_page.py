"""The figures of docs/layerwise.md are those of the benchmark's results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from layerwise_page import PAGE, cost_section
from where import RESULTS


def test_the_page_holds_what_was_measured_last() -> None:
    data = json.loads((RESULTS / "layerwise_cpu.json").read_text())
    assert f"\n\n{cost_section(data)}\n\n<!-- layerwise cost: end -->" in PAGE.read_text()
