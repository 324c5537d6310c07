"""The default comparison, whole: what `make demo` shows."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from gradscale.cli.group import gradscale
from gradscale.training import COMPARED


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_default_comparison_shows_what_scaling_is_for(tmp_path):
    arguments = [
        "compare",
        "--device",
        "cpu",
        "--json",
        "--seeds",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    result = CliRunner().invoke(gradscale, arguments)
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]

    table = {(row["loss_divisor"], row["format"], row["policy"]): row for row in rows}
    expected = [("fp32", "none"), *(("fp16", name) for name in COMPARED)]
    assert list(table) == [(divisor, *row) for divisor in (1.0, 16384.0) for row in expected]

    truth = table[1.0, "fp32", "none"]
    assert truth["metric"]["mean"] > 0.97
    assert table[16384.0, "fp32", "none"]["loss"] == truth["loss"], "a power of two is exact"
    for (divisor, precision, scaling), row in table.items():
        if precision == "fp32":
            continue
        unscaled = scaling == "none" and divisor > 1
        assert (row["metric"]["mean"] < truth["metric"]["mean"] - 0.1) == unscaled, row
        assert (row["lost_share"]["mean"] > 0.5) == unscaled, row
        assert not row["skipped"] or set(row["skipped"]) == {"overflow"}
    for divisor in (1.0, 16384.0):
        ours, torchs = (table[divisor, "fp16", name] for name in ("dynamic", "torch"))
        for name in ("loss", "metric", "lost_share", "skipped", "final_scales"):
            assert ours[name] == torchs[name], "Dynamic() is torch's rule, bit for bit"
