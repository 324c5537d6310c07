"""The rules of docs/architecture.md, read off the source: who imports whom, how big things get."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import statistics
import subprocess
import sys
import types
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gradscale"
FILES = sorted(SOURCE.rglob("*.py"))

# Single files on the ground floor may share it, and know each other.
GROUND = {
    "accelerators",
    "argument_checks",
    "callers",
    "capturing",
    "entries",
    "exponents",
    "formats",
    "histogram",
    "host_copies",
    "live_nodes",
    "nested_tensors",
    "optimizer_parameters",
    "owning_module",
    "percent",
    "random_state",
    "ranks",
    "torch_types",
    "triton_kernels",
    "untraced",
    "version",
    "waiting_line",
}

# Lowest first, one package a floor: a module imports from its own package and from below.
FLOORS = (
    "files",
    "policies",
    "communication",
    "emulation",
    "gradients",
    "outcomes",
    "undo",
    "functional",
    "metrics",
    "compiled",
    "backward",
    "plans",
    "half",
    "layerwise",
    "checkpoints",
    "scaler",
    "captured",
    "watching",
    "truth",
    "recording",
    "replay",
    "advice",
    "doctor",
    "integrations",
    "recipes",
    "training",
    "report",
    "cli",
)

PUBLIC = (
    "gradscale",
    "gradscale.advice",
    "gradscale.backward",
    "gradscale.checkpoints",
    "gradscale.communication",
    "gradscale.doctor",
    "gradscale.emulation",
    "gradscale.formats",
    "gradscale.histogram",
    "gradscale.metrics",
    "gradscale.outcomes",
    "gradscale.plans",
    "gradscale.policies",
    "gradscale.recording",
    "gradscale.replay",
    "gradscale.report",
    "gradscale.truth",
    "gradscale.watching",
)

# What needs an extra, or a trainer of another package, to be imported.
EXTRAS = (
    "gradscale.__main__",
    "gradscale.cli",
    "gradscale.recipes",
    "gradscale.training",
    "gradscale.report",
    "gradscale.integrations.",
)

MAX_LINES = 300
MAX_MEDIAN_LINES = 120
MAX_P90_FUNCTION = 30
MAX_DEPTH = 3
VAGUE = {"utils", "util", "helpers", "helper", "common", "core", "misc", "base"}


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    """Of a module's package, the ground being 0."""
    part = module.split(".")[1]
    assert part in GROUND or part in FLOORS, f"{part} has no floor: name it in FLOORS, and draw it"
    return 0 if part in GROUND else 1 + FLOORS.index(part)


MODULES = {module_of(path): path for path in FILES}


def imports_of(path: Path, *, at_import: bool = False) -> set[str]:
    """The gradscale modules that a file imports; with `at_import`, only those that run with it."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for node in _running(tree) if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively; write the full name"
            within = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= within or {node.module}
    return {name for name in found if name in MODULES}


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported: no function bodies, nothing under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _running(child)


def functions_of(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def length_of(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return lines - ((first.end_lineno or 0) - first.lineno + 1 if documented else 0)


def relative(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_every_package_has_a_floor_of_its_own() -> None:
    parts = {path.stem if path.is_file() else path.name for path in SOURCE.iterdir()}
    parts -= {"__init__", "__main__", "__pycache__", "py"}
    assert sorted(parts) == sorted([*GROUND, *FLOORS]), (
        "name it in FLOORS and in the page's picture"
    )
    assert all((SOURCE / f"{name}.py").is_file() for name in GROUND)


# What is imported for type checking, or within a function, counts: a reader has to follow it, too.
@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_point_one_way(path: Path) -> None:
    module = module_of(path)
    if module in ("gradscale", "gradscale.__main__"):
        return
    for imported in imports_of(path):
        assert imported != "gradscale", f"{module} imports the package it is part of"
        same = imported.split(".")[1] == module.split(".")[1]
        ground = floor_of(module) == floor_of(imported) == 0
        lower = floor_of(imported) < floor_of(module)
        assert same or ground or lower, f"{module} must not import {imported}"


def test_the_page_draws_the_floors_as_they_are() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    picture = re.findall(r"[a-z_]+", page.split("```text\n")[1].split("```")[0])
    assert [name for name in picture if name not in GROUND] == list(FLOORS)
    assert {name for name in picture if name in GROUND} == GROUND


def test_no_module_needs_itself_to_be_imported() -> None:
    graph = {name: imports_of(path, at_import=True) - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle of imports: {error.args[1]}")


def test_every_part_is_in_the_architecture_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    parts = {p.name + "/" if p.is_dir() else p.name for p in SOURCE.iterdir()}
    parts -= {"__pycache__/", "__init__.py", "py.typed"}
    assert {part for part in parts if f"`{part}" not in page} == set()


def fresh_python(code: str) -> str:
    """What a new interpreter prints."""
    run = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(run, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_gradscale_brings_in_torch_and_nothing_else() -> None:
    code = f"""
import sys, torch
before = set(sys.modules)
import gradscale
roots = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(roots - sys.stdlib_module_names - {{"torch", "gradscale"}}))
heavy = {(*EXTRAS, "torch._dynamo")!r}
print([name for name in heavy if name in sys.modules and name not in before])
"""
    assert fresh_python(code).split("\n")[:2] == ["[]", "[]"]


def test_report_and_replay_are_there_once_somebody_asks_for_them() -> None:
    code = """
import sys, gradscale
assert not {"gradscale.report", "gradscale.replay"} & set(sys.modules)
print(gradscale.replay.replay.__name__, gradscale.report.__name__, hasattr(gradscale, "rapport"))
"""
    assert fresh_python(code).strip() == "replay gradscale.report False"


def test_the_package_runs_as_the_command() -> None:
    run = [sys.executable, "-m", "gradscale", "recipes"]
    result = subprocess.run(run, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0 and "digits" in result.stdout


def test_the_library_works_where_no_extra_is_installed() -> None:
    library = [name for name in MODULES if not name.startswith(EXTRAS)]
    code = f"""
import importlib, sys
for extra in ("click", "rich", "sklearn", "PIL", "tomli", "hypothesis", "gfloat", "ml_dtypes"):
    sys.modules[extra] = None
for name in {library!r}:
    importlib.import_module(name)
"""
    fresh_python(code)


def test_the_top_level_shows_what_is_public_and_nothing_that_happens_to_be_imported() -> None:
    code = """
import gradscale, json, types
values = {name: getattr(gradscale, name) for name in dir(gradscale)}
starred = {}
exec("from gradscale import *", starred)
packages = [name for name, value in values.items() if isinstance(value, types.ModuleType)]
print(json.dumps([list(values), packages, sorted(set(starred) - {"__builtins__"})]))
"""
    names, packages, starred = map(set, json.loads(fresh_python(code)))
    documented = {package.removeprefix("gradscale.") for package in PUBLIC}
    assert packages <= documented | {"functional", "integrations", "presets"}
    ours = {name for package, name in public_names() if package == "gradscale"}
    assert names - packages == ours | {"__version__"}
    assert ours <= starred <= names


def public_names() -> list[tuple[str, str]]:
    names: dict[int, tuple[str, str]] = {}
    for package in PUBLIC:
        module = importlib.import_module(package)
        for name, value in vars(module).items():
            # An object that several packages export counts once, where it is first found.
            defined = getattr(value, "__module__", package)
            private = name.startswith("_") or isinstance(value, types.ModuleType)
            if not private and str(defined).startswith("gradscale"):
                names.setdefault(id(value), (package, name))
    return list(names.values())


def documented(value: object) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value)


@pytest.mark.parametrize(("package", "name"), public_names())
def test_every_public_name_is_documented_and_in_the_reference(package: str, name: str) -> None:
    value = getattr(importlib.import_module(package), name)
    pages = "\n".join(p.read_text() for p in sorted((ROOT / "docs" / "reference").glob("*.md")))
    listed = re.findall(r"^::: gradscale\S*\.(\w+)$", pages, re.MULTILINE)
    assert name in listed, f"add `::: {package}.{name}` to a page of docs/reference"
    if documented(value):
        assert (value.__doc__ or "").strip(), f"{package}.{name} has no docstring"
    if inspect.isroutine(value):
        assert ">>>" in (value.__doc__ or ""), f"{package}.{name} has no runnable example"


def test_the_reference_lists_nothing_that_does_not_exist() -> None:
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for target in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE):
            owner, _, name = target.rpartition(".")
            assert hasattr(importlib.import_module(owner), name), f"{page.name}: {target}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_is_small_and_has_one_line_that_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(text)), "no module docstring"
    assert not VAGUE & {path.stem, path.parent.name}, "a vague name"


def test_half_of_all_files_are_short() -> None:
    lengths = [len(p.read_text().splitlines()) for p in FILES if p.name != "__init__.py"]
    assert statistics.median(lengths) <= MAX_MEDIAN_LINES


def test_nine_functions_in_ten_are_short() -> None:
    lengths = sorted(length_of(f) for path in FILES for f in functions_of(path))
    assert lengths[int(0.9 * len(lengths))] <= MAX_P90_FUNCTION


def test_no_own_class_is_deeper_than_three() -> None:
    """What a reader must hold in mind at once; longer chains want parts instead."""
    bases: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [b.id for b in node.bases if isinstance(b, ast.Name)]

    def depth(name: str) -> int:
        return 1 + max((depth(b) for b in bases[name] if b in bases and b != name), default=0)

    assert {name: depth(name) for name in bases if depth(name) > MAX_DEPTH} == {}


def test_no_user_is_met_with_an_assertion() -> None:
    found = [
        f"{relative(path)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_nothing_is_left_to_do_later() -> None:
    later = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    found = [f"{relative(p)}: {m[0].strip()}" for p in FILES for m in later.finditer(p.read_text())]
    assert found == []


def test_no_committed_text_names_a_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    # Spelled in pieces, so that this file does not find itself.
    places = re.compile("/" + r"(?:work|root|home|opt|tmp)/\w|file:" + "///|--" + r"index-url\s+\S")
    found: list[str] = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yml", ".txt", ".sh", ""} and path.is_file():
            found += [f"{name}: {m[0]}" for m in places.finditer(path.read_text(errors="ignore"))]
    assert found == []
