"""What all tests share: one thread, and the data."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from training.data import Dataset, load
from training.data.mnist import has_mnist

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job ignores it, and so would children


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """The directory that holds the full MNIST; tests that need it are skipped where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("MANUAL_BACKPROP_DATA", beside))
    if not has_mnist(path):
        pytest.skip(f"the full MNIST is not in {path}: set MANUAL_BACKPROP_DATA to the directory that holds MNIST/raw")
    return path


@pytest.fixture(scope="session")
def sample() -> Dataset:
    """The bundled sample of MNIST."""
    return load("sample")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's path; tests that need one are skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((path for name in names if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"there is no browser: none of {', '.join(names)} is installed")
    return path
