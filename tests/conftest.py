"""What all tests share: the state in which each begins, and the data."""

import os
import shutil
import signal
from pathlib import Path
from zlib import crc32

import pytest
import torch

from tests.support.text.families import register
from training import generation
from training.data import load
from training.data.mnist import has_mnist

torch.set_num_threads(1)
generation.LENGTH = 3  # of the sample that an evaluation shows: it takes longer than a small run's steps
torch.set_warn_always(True)  # else torch gives many warnings once a process, and which test gets one is up to the order
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job ignores it, and so would children


def pytest_itemcollected(item):
    """What is long is slow; of a sweep(n) about one case in n is not, whichever the checksum of its name picks."""
    sweep = item.get_closest_marker("sweep")
    if item.get_closest_marker("long") or (sweep and crc32(item.name.encode()) % sweep.args[0]):
        item.add_marker("slow")


def shared_state():
    """What a test could leave to those that run after it."""
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "warn always": torch.is_warn_always_enabled(),
        "signal handlers": (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
        "directory": Path.cwd(),
    }


def begin():
    torch.set_num_threads(1)  # a run in this process sets its own
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Before the fixtures that several tests share: they are made for whichever of these is first."""
    begin()


@pytest.fixture(autouse=True)
def any_order():
    """A test begins with one thread and seeded, and leaves the rest of the shared state as it was."""
    begin()
    before = shared_state()
    yield
    assert shared_state() == before


@pytest.fixture(scope="session")
def mnist_dir():
    """The directory that holds the full MNIST; tests that need it are skipped where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("MANUAL_BACKPROP_DATA", beside))
    if not has_mnist(path):
        pytest.skip(f"the full MNIST is not in {path}: set MANUAL_BACKPROP_DATA to the directory that holds MNIST/raw")
    return path


@pytest.fixture(scope="session")
def sample():
    """The bundled sample of MNIST."""
    return load("sample")


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """The text families stand beside those of the registry."""
    with pytest.MonkeyPatch.context() as patch:
        register(patch, tmp_path_factory.mktemp("presets"))
        yield


@pytest.fixture(scope="module")
def browser():
    """Chromium by Playwright; tests that need a browser are skipped where one of the two is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((path for name in names if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"there is no browser: none of {', '.join(names)} is installed")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()
