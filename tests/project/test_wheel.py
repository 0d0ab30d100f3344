"""What is installed from the wheel, in an environment of its own."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gradient_check", "manual_backprop")
NOT_INSTALLED = ("reference", "gallery", "training", "explanation", "tests", "benchmarks", "verify", "train")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network, from a copy, because a build leaves things beside the source."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "data", "runs", "build", "mutants", "*.egg-info")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    built = run(*PIP, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", folder, cwd=folder / "source")
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that has the wheel, and torch and pytest from the one of these tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    scheme = {"base": str(folder), "platbase": str(folder)}
    python = Path(sysconfig.get_path("scripts", "venv", scheme)) / "python"
    installed = run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(sysconfig.get_path("purelib", "venv", scheme)) / "outer.pth").write_text("\n".join(outer))
    return python


def test_it_holds_the_two_packages_and_nothing_else(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    modules = [name for name in names if ".dist-info/" not in name]
    sources = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".typed")}
    assert set(modules) == {path.relative_to(ROOT).as_posix() for path in sources}
    assert {f"{package}/py.typed" for package in PACKAGES} < set(modules)


@pytest.mark.long
def test_it_works_without_the_rest_of_the_project(python: Path, tmp_path: Path) -> None:
    program = f"""
import importlib.util, gradient_check, manual_backprop.models.mlp
assert "site-packages" in gradient_check.__file__, gradient_check.__file__
print([name for name in {NOT_INSTALLED} if importlib.util.find_spec(name)])
activation = manual_backprop.models.mlp.ACTIVATIONS["tanh"]
import torch
z = torch.randn(5, 3, dtype=torch.float64)
print(gradient_check.check_backward(activation.forward, activation.backward, (z,)).passed)
"""
    done = run(python, "-c", program, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\nTrue\n", "")


@pytest.mark.long
def test_pytest_finds_the_plugin_by_itself(python: Path, tmp_path: Path) -> None:
    (tmp_path / "test_cube.py").write_text("""
import pytest, torch

def forward(x):
    return x**3, x

def right(dy, x):
    return 3 * x**2 * dy

def wrong(dy, x):
    return x**2 * dy

@pytest.mark.gradient_check(seeds=2)
@pytest.mark.parametrize("backward", [right, wrong])
def test_cube(gradient_check, backward):
    gradient_check.backward(forward, backward, (torch.randn(5, 3, dtype=torch.float64),))
""")
    done = run(python, "-m", "pytest", "-q", "--strict-markers", "-W", "error", "-p", "no:cacheprovider", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "FAILED test_cube.py::test_cube[wrong]" in done.stdout
    assert "with seed=0" in done.stdout
