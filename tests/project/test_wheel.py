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


def run(*command, cwd):
    return subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built without a network, from a copy, because a build leaves things beside the source."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "data", "runs", "build", "mutants", "*.egg-info")
    source = shutil.copytree(ROOT, folder / "source", ignore=ignored)
    built = run(*PIP, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", folder, cwd=source)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
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


def test_it_holds_the_two_packages_and_nothing_else(wheel):
    modules = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in (".py", ".typed")}
    assert modules == {path.relative_to(ROOT).as_posix() for path in sources}
    assert {f"{package}/py.typed" for package in PACKAGES} < modules


@pytest.mark.long
def test_it_works_without_the_rest_of_the_project(python, tmp_path):
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
def test_its_command_checks_a_file(python, tmp_path):
    pair = "def forward(x): return x**3, x\n\ndef backward(dy, x): return 3 * x**2 * dy\n"
    (tmp_path / "cube.py").write_text(f"import torch\n\n{pair}\nexample = [torch.rand(5, 3)]\n")
    done = run(python, "-m", "gradient_check", "cube.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.long
def test_pytest_finds_the_plugin_by_itself(python, tmp_path):
    (tmp_path / "test_cube.py").write_text("""
import pytest, torch

@pytest.mark.gradient_check(seeds=2)
@pytest.mark.parametrize("slope", [3, 1])
def test_cube(gradient_check, slope):
    x = torch.randn(5, 3, dtype=torch.float64)
    gradient_check.backward(lambda x: (x**3, x), lambda dy, x: slope * x**2 * dy, [x])
""")
    done = run(python, "-m", "pytest", "-q", "--strict-markers", "-W", "error", "-p", "no:cacheprovider", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    for said in ("1 failed, 1 passed", "FAILED test_cube.py::test_cube[1]", "with seed=0"):
        assert said in done.stdout
