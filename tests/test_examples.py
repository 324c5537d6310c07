"""Every example that a reader meets runs: docstrings, pages, scripts and command lines."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import runpy
import shlex
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import gradscale
from hosts import host

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FENCE = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found: list[Block] = []
    for match in FENCE.finditer(text):
        indent = len(match[1])
        code = "".join(line[indent:] for line in match[3].splitlines(keepends=True))
        found.append(Block(match[2], code, text.count("\n", 0, match.start(3)) + 1))
    return found


def pages_with(*languages: str) -> list[Path]:
    return [p for p in PAGES if any(block.language in languages for block in blocks_of(p))]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


APART = {"gradscale.integrations.timm"}
"""Needs a host that no test may import; `tests/integrations/test_apart.py` trains with it."""


def modules() -> Iterator[str]:
    yield "gradscale"
    for module in pkgutil.walk_packages(gradscale.__path__, "gradscale."):
        if not module.name.endswith("__main__") and module.name not in APART:
            yield module.name


@pytest.mark.parametrize("name", sorted(modules()))
def test_the_examples_in_docstrings_run(name: str) -> None:
    module = host(name) if ".integrations." in name else importlib.import_module(name)
    torch.manual_seed(0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testmod(module, optionflags=flags, extraglobs={"torch": torch})
    assert result.failed == 0


def run_block(page: Path, block: Block, code: str, names: dict[str, Any]) -> None:
    if code.lstrip().startswith(">>>"):
        test = doctest.DocTestParser().get_doctest(code, names, str(page), str(page), block.line)
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        assert runner.run(test, clear_globs=False).failed == 0
        names.update(test.globs)
        return
    # Empty lines put the error on the page's own line number.
    exec(compile("\n" * (block.line - 1) + code, str(page), "exec"), names)


@pytest.mark.parametrize("page", pages_with("python"), ids=relative)
def test_the_python_on_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = types.ModuleType("page")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "page", module)
    names = vars(module)
    require_hosts(page)
    for block in blocks_of(page):
        if block.language == "python":
            run_block(page, block, block.code, names)


def require_hosts(page: Path) -> None:
    """A page about a host runs where that is installed."""
    if page.parent.name == "integrations":
        code = "\n".join(block.code for block in blocks_of(page) if block.language == "python")
        warnings.simplefilter("ignore")  # the host's are not ours to mend
        for name in re.findall(r"^\s*(?:from|import) (\w+)", code, re.MULTILINE):
            if name not in {"gradscale", "torch", *sys.stdlib_module_names}:
                host(name)


@pytest.mark.parametrize("page", pages_with("diff"), ids=relative)
def test_what_a_diff_leads_to_runs(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "diff":
            kept = [line[1:] for line in block.code.splitlines(True) if line[:1] in "+ \n"]
            run_block(page, block, "".join(kept), training_names())


def training_names() -> dict[str, Any]:
    """What a page may assume around a diff: a network, its data and how it is trained."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    return {
        "torch": torch,
        "device": "cpu",
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_fn": torch.nn.functional.mse_loss,
        "loader": [(torch.randn(8, 4), torch.randn(8, 2)) for _ in range(3)],
    }


def commands() -> list[str]:
    found: dict[str, None] = {}
    for page in pages_with("sh", "bash", "console", "shell"):
        for block in blocks_of(page):
            if block.language in {"sh", "bash", "console", "shell"}:
                joined = block.code.replace("\\\n", " ")
                for line in joined.splitlines():
                    command = line.removeprefix("$ ").partition("  #")[0].strip()
                    if command.startswith("gradscale"):
                        found[command] = None
    return list(found)


@pytest.mark.parametrize("command", commands())
def test_the_command_lines_on_the_pages_are_understood(command: str) -> None:
    testing = pytest.importorskip("click.testing")
    program = importlib.import_module("gradscale.cli.group").gradscale
    result = testing.CliRunner().invoke(program, [*shlex.split(command)[1:], "--help"])
    assert result.exit_code == 0, result.output


def test_the_make_targets_on_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shells = {"sh", "bash", "console", "shell"}
    named = {
        name
        for page in PAGES
        for block in blocks_of(page)
        if block.language in shells
        for name in re.findall(r"^make ([a-z-]+)", block.code, re.MULTILINE)
    }
    assert named <= targets


@pytest.mark.parametrize("script", EXAMPLES, ids=relative)
def test_an_example_script_runs(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(script), "--steps", "3"])
    torch.manual_seed(0)
    runpy.run_path(str(script), run_name="__main__")


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{relative(page)} links to {target}"
