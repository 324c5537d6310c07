"""What docs/doctor.md shows is what the command prints, and it names every finding."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gradscale import doctor

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"
SOURCE = Path(doctor.__file__).parent


def test_the_outputs_on_the_page_are_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    testing = pytest.importorskip("click.testing")
    from gradscale.cli.group import gradscale as program

    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text()
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)[:2]:
        exec(block, names)
    shown = re.findall(r"```sh\n([^\n]*)\n```\n\n```text\n(.*?)```", text, re.DOTALL)
    assert len(shown) == 3
    for command, output in shown:
        result = testing.CliRunner().invoke(program, shlex.split(command)[1:])
        assert result.stdout == output, command


def test_every_finding_is_on_the_page_and_no_other() -> None:
    named = set(re.findall(r"`([a-z0-9-]+)`", PAGE.read_text().partition("## What it finds")[2]))
    made = set()
    for file in SOURCE.rglob("*.py"):
        literal = r'"(?:error|warning|note)"(?: if [^,]*)?,\s*"([a-z0-9-]+)"'
        made |= set(re.findall(literal, file.read_text()))
        made |= set(re.findall(r'_Kind\(\s*"([a-z0-9-]+)"', file.read_text()))
    made -= {"x", "error", "warning", "note"}  # of docstrings and types
    made |= {"nonfinite-loss", "nonfinite-input", "nonfinite-parameter"}
    codes = named
    assert codes == made
