"""The minimal runs on the page of upstream changes print what the page says they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hosts import host

PAGE = Path(__file__).parents[2] / "docs" / "upstream.md"
SECTION = re.compile(r"^## (\w+): .*?^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUNS = {
    heading: code
    for part in re.split(r"^(?=## )", PAGE.read_text(), flags=re.MULTILINE)
    for heading, code in SECTION.findall(part)
}


def test_every_change_but_that_of_an_engine_for_gpus_has_a_run():
    assert list(RUNS) == ["Accelerate", "Lightning", "torch"]


@pytest.mark.parametrize("name", RUNS)
def test_a_minimal_run_prints_what_the_page_says(name, tmp_path):
    if name != "torch":
        host(name.lower())
    claimed = re.findall(r"^# prints (.*)$", RUNS[name], re.MULTILINE)
    assert claimed
    (tmp_path / "run.py").write_text(RUNS[name])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "run.py"],
        cwd=tmp_path,
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    for line in claimed:
        assert any(said.startswith(line) for said in printed), done.stdout
