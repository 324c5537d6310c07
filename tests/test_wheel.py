"""The built wheel installs into an empty environment and trains there, on torch alone."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

TRAINS = """
import sys, torch, gradscale
from importlib.metadata import version
assert gradscale.__file__.startswith(sys.prefix), gradscale.__file__
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = gradscale.GradScaler("cpu")
inputs, losses = torch.randn(16, 4), []
for step in range(3):
    optimizer.zero_grad()
    loss = (model(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    losses.append(loss.item())
assert losses[2] < losses[1] < losses[0], losses
print("trained", version("gradscale"))
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out]
    run(*build, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel in it, which borrows torch from this one by its path."""
    home = tmp_path_factory.mktemp("home")
    venv.create(home, with_pip=False)
    interpreter = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "install"]
    run(*pip, "--no-deps", "--no-index", wheel, cwd=home)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(interpreter, "-c", code, cwd=home).strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def test_the_wheel_holds_the_package_its_types_and_its_license(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "gradscale/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    sources = {str(p.relative_to(ROOT / "src")) for p in (ROOT / "src").rglob("*.py")}
    assert sources <= set(names)
    assert {n for n in names if not n.startswith("gradscale")} == set()


def test_the_wheel_requires_torch_and_nothing_else(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (n for n in archive.namelist() if n.endswith("METADATA"))
    required = Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist") or []
    assert [r for r in required if "extra ==" not in r] == ["torch>=2.10"]


def test_the_installed_wheel_trains(python: Path) -> None:
    assert "trained 0." in run(python, "-I", "-c", TRAINS, cwd=python.parent)


def test_the_installed_command_starts(python: Path) -> None:
    assert "compare" in run(python.parent / "gradscale", "--help", cwd=python.parent)
